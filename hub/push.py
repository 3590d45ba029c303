"""Push a finished run to the Hugging Face Hub in one commit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, constants, get_session
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_imports

from ..configuration_kgl import KGLConfig
from ..data.storage import full_disk_as_input_error, write_json, write_text
from ..errors import InputError
from ..training.arguments import LicenseArguments
from ..training.run_dir import absolute_paths, check_run
from .model_card import UserPart, merge_user_parts, read_user_part, render_card


# Only these files are pushed, none of which can hold a pickle.
_MODEL_FILES = (
    "config.json", "preprocessor_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "configuration_kgl.py", "heads_kgl.py", "modeling_kgl.py", "pipeline_kgl.py",
    "handler.py",
)  # fmt: skip
_RUN_FILES = ("metrics.json", "report.html", "grid_*.png")
_REQUIRED_FILES = ("metrics.json", "final/config.json", "final/preprocessor_config.json", "final/modeling_kgl.py")
_CARD = constants.REPOCARD_NAME
_EMBEDDED_IMAGE = re.compile(r"base64,[A-Za-z0-9+/=]+")
# Raised by huggingface_hub for the Hub, the network, the login, and files that cannot be read.
_HUB_ERRORS = (HTTPError, OSError, RuntimeError, ValueError)
_TIMEOUT = 120.0  # seconds of silence on a connection; huggingface_hub's own default is to wait for ever


def files_to_push(run: Path) -> dict[str, Path]:
    """
    Return the files to push, by their paths in the repository; the model card is not among them.

    Raises:
        InputError: this is no finished run, its weights are damaged, or a file contains a path of this machine.
    """
    check_run(run, _REQUIRED_FILES)
    final = run / "final"
    # An earlier version's code is in fewer files.
    check_run(run, [f"final/{name}.py" for name in get_relative_imports(final / "modeling_kgl.py")])
    paths = [path for name in _MODEL_FILES for path in sorted(final.glob(name))]
    paths += [path for name in _RUN_FILES for path in sorted(run.glob(name))]
    weights = [path for path in paths if path.suffix == ".safetensors"]
    if not weights:
        raise InputError(
            f"{final}: the weights (model.safetensors) are missing; train again into another --output_dir."
        )
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise InputError(f"{path}: this is no complete safetensors file ({error}); train again.") from error
    for path in paths:
        if path.suffix in (".json", ".html") and (leaked := _find_local_path(path, run)):
            raise InputError(f"{path} contains a path of this machine, {leaked}; train again to have it left out.")
    return {path.name: path for path in paths}


def _find_local_path(file: Path, run: Path) -> str | None:
    """Return a path of the run's settings that a file contains, embedded images aside (any text may occur there)."""
    text = _EMBEDDED_IMAGE.sub("", file.read_text("utf-8"))
    for path in absolute_paths(json.loads((run / "run.json").read_text())):
        if re.search(rf"(?<![\w.<]){re.escape(path)}(?!\w)", text):
            return path
    return None


def push(
    run: Path,
    repo: str,
    licenses: LicenseArguments | None = None,
    *,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """
    Push the final classifier of a finished run with its code, card, image grids and metrics in one commit.

    The run's folder is changed only after the push: the model card becomes that of the Hub, and `metrics.json` gets
    the licences.

    Args:
        run: output folder of the run.
        repo: `OWNER/NAME`, or `NAME` for a repository of one's own.
        licenses: take precedence over those stated in the run or an earlier push.
        private: make a new repository private; an existing public one is refused then.
        token: by default that of `hf auth login` or `HF_TOKEN`.
        revision: branch, created if it does not exist; `main` by default.

    Returns:
        The URL of the commit.

    Raises:
        InputError: the run cannot be pushed; the message says why and what to do.
    """
    files = files_to_push(run)
    report = json.loads((run / "metrics.json").read_text())
    stated = asdict(licenses or LicenseArguments())
    report["licenses"] |= {name: license for name, license in stated.items() if license is not None}
    with translate_hub_errors(run, repo), http_timeout():
        api = HfApi(token=token)
        api.whoami()
        repo_id = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        remote = api.model_info(repo_id, revision=revision, timeout=_TIMEOUT)
        if private and not remote.private:
            raise InputError(f"{repo_id} exists and is public: allow that (--public), or choose another repository.")
        if not private and remote.private:
            print(f"{repo_id} exists and is private; it stays private. Its settings on the Hub can change that.")
        card = _merged_card(run, report, repo_id, _download_card(api, remote))
        # create_commit, not upload_folder: that one may split a push into several commits (where hf_xet is installed).
        # With the parent named, an edit made on the Hub in the meantime is refused, not overwritten.
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(_CARD, card.encode()), *(CommitOperationAdd(*file) for file in files.items())],
            commit_message="Push a run of kgl train",
            revision=revision,
            parent_commit=remote.sha,
        )
    with full_disk_as_input_error(run):
        write_text(run / "final" / _CARD, card)
        write_json(run / "metrics.json", report)
    return commit.commit_url


def check_login(token: str | None = None) -> None:
    """
    Check that the Hub accepts the login, before a training that is to be pushed at its end.

    Args:
        token: by default that of `hf auth login` or `HF_TOKEN`.

    Raises:
        InputError: it does not, or it cannot be reached.
    """
    try:
        with http_timeout():
            HfApi(token=token).whoami()
    except _HUB_ERRORS as error:
        raise InputError(
            f"--push_to_hub true: {_describe_error(error)} Or leave it out: kgl push pushes the finished run."
        ) from error


def _merged_card(run: Path, report: dict, repo_id: str, remote_text: str | None) -> str:
    """Return the card to push: the run's facts, and what the user wrote locally or on the Hub."""
    path = run / "final" / _CARD
    local_text = path.read_text("utf-8") if path.exists() else None
    local, remote = (
        UserPart() if text is None else read_user_part(text, report) for text in (local_text, remote_text)
    )
    user = merge_user_parts(local, remote, str(path), f"{_CARD} of {repo_id} on the Hub")
    if user.unmarked:
        print(f"{_CARD} is pushed as it is: the lines that mark kgl's part of it were removed.")
    return render_card(report, KGLConfig.from_pretrained(run / "final"), user, repo_id)


def _download_card(api: HfApi, remote: ModelInfo) -> str | None:
    if _CARD not in {file.rfilename for file in remote.siblings}:
        return None
    return Path(api.hf_hub_download(remote.id, _CARD, revision=remote.sha)).read_text("utf-8")


@contextmanager
def http_timeout() -> Iterator[None]:
    """Limit how long huggingface_hub waits for an answer."""
    session = get_session()
    before = session.timeout
    session.timeout = _TIMEOUT
    try:
        yield
    finally:
        session.timeout = before


@contextmanager
def translate_hub_errors(run: Path, repo: str) -> Iterator[None]:
    """Turn errors of the Hub, the network, the login and files into an [`InputError`] of one sentence."""
    try:
        yield
    except InputError:
        raise
    except _HUB_ERRORS as error:
        again = f"The run in {run} is complete; push it later with: kgl push {run} {repo}"
        raise InputError(f"{repo} was not pushed: {_describe_error(error)} {again}") from error


def _describe_error(error: Exception) -> str:
    # Uploads of weights and downloads raise errors whose cause is the actual one.
    if isinstance(error, (RuntimeError, LocalEntryNotFoundError)) and error.__cause__ is not None:
        return _describe_error(error.__cause__)
    words = " ".join(str(error).split())
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids network access; unset it."
    if isinstance(error, LocalTokenNotFoundError):
        return "you are not logged in; run hf auth login, or set HF_TOKEN."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        advice = {
            401: "the Hub does not accept your token; run hf auth login, or set HF_TOKEN to a valid one.",
            403: "your token does not allow this; use one with write access, or another owner's name.",
            404: "the repository or owner does not exist, or your token has no access to it; check the name.",
            409: "another push to it is running; wait for it and push again.",
            412: "it was changed in the meantime; push again.",
            413: "this exceeds your storage on the Hub; free some, or ask the Hub for more.",
            429: "you have sent the Hub too many requests; wait some minutes and push again.",
        }
        if status in advice:
            return f"{advice[status]} (HTTP {status})"
        if status >= 500:
            return f"the Hub has an internal error (HTTP {status}); try again later."
        return f"the Hub refused (HTTP {status}): {words}"
    if isinstance(error, HTTPError):
        return (
            f"{constants.ENDPOINT} cannot be reached or does not answer in time ({type(error).__name__}: {words}); "
            "check the network."
        )
    return words


__all__ = ["check_login", "files_to_push", "http_timeout", "push", "translate_hub_errors"]
