"""Arguments of the push; importing them needs neither torch nor transformers nor huggingface_hub."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import expand_home
from ..training.arguments import check_repo_id


@dataclass
class PushArguments:
    """The run to push and its repository."""

    run: str = field(metadata={"help": "Output folder of a finished run."})
    repo: str = field(metadata={"help": "Repository, OWNER/NAME; without an owner, yours."})
    public: bool = field(default=False, metadata={"help": "Make a new repository public; by default it is private."})

    def __post_init__(self) -> None:
        expand_home(self, "run")
        check_repo_id(self.repo)


__all__ = ["PushArguments"]
