"""Arguments of the push; importing them needs neither torch nor transformers nor huggingface_hub."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError


def check_repo_id(repo: str) -> None:
    """
    Check the name of a repository.

    Raises:
        InputError: no repository can have this name.
    """
    # Imported here to keep the command line's help fast.
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo}: this is no valid repository name. {error}") from error


@dataclass
class PushArguments:
    """The run to push and its repository."""

    run: str = field(metadata={"help": "Output folder of a finished run."})
    repo: str = field(metadata={"help": "Repository, OWNER/NAME; without an owner, yours."})
    public: bool = field(default=False, metadata={"help": "Make a new repository public; by default it is private."})

    def __post_init__(self) -> None:
        check_repo_id(self.repo)


__all__ = ["PushArguments", "check_repo_id"]
