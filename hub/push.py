"""Push a finished run to the Hugging Face Hub in one commit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo, constants, get_session
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from ..configuration_kgl import KGLConfig
from ..data.storage import write_json, write_text
from ..errors import InputError
from ..training.arguments import LicenseArguments
from ..training.run_dir import absolute_paths
from .model_card import Edits, card_metadata, card_text, merged_edits, read_edits


# All that is pushed: nothing that is not named here, and nothing that unpickles.
_OF_MODEL = (
    "config.json", "preprocessor_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "configuration_kgl.py", "modeling_kgl.py", "pipeline_kgl.py",
)  # fmt: skip
_OF_RUN = ("metrics.json", "report.html", "grid_*.png")
_NEEDED = ("config.json", "preprocessor_config.json", "configuration_kgl.py", "modeling_kgl.py")
_CARD = constants.REPOCARD_NAME
_PUSHED = "pushed.json"  # repository -> the card as it was pushed there last, to tell later edits by
_EMBEDDED = re.compile(r"base64,[A-Za-z0-9+/=]+")
_SECONDS = 120.0  # of silence on a connection; huggingface_hub by itself waits for ever


def check_repo_id(repo: str) -> None:
    """
    Raises:
        InputError: no repository can be called so.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo}: no repository can be called so. {error}") from error


def files_to_push(run: Path) -> dict[str, Path]:
    """
    Path in the repository -> file, the card left out.

    Raises:
        InputError: it is no finished run, its weights are damaged, or a file tells a path of this machine.
    """
    if not run.is_dir():
        raise InputError(f"{run}: there is no such folder; give a run's --output_dir.")
    if (run / "phase.json").is_file():
        raise InputError(f"{run}: this is one classifier of a run; give the run's folder, {run.parent}.")
    final = run / "final"
    missing = [path for path in (run / "metrics.json", *(final / name for name in _NEEDED)) if not path.is_file()]
    if missing:
        raise InputError(
            f"{run}: it holds no finished run of kgl-train, for want of {missing[0].relative_to(run)}; finish it."
        )
    found = [*(path for name in _OF_MODEL for path in sorted(final.glob(name)))]
    found += [path for name in _OF_RUN for path in sorted(run.glob(name))]
    files = {path.name: path for path in found}
    weights = [path for path in found if path.suffix == ".safetensors"]
    if not weights:
        raise InputError(f"{final}: it holds no weights (model.safetensors); run kgl-train to its end.")
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise InputError(f"{path}: it is no whole safetensors file ({error}); train again.") from error
    for path in found:
        if path.suffix in (".json", ".html") and (leaked := _path_told(path, run)):
            raise InputError(f"{path} tells where {leaked} lies on this machine; train again to have it left out.")
    return files


def _path_told(file: Path, run: Path) -> str | None:
    """A path of the run's settings that a file tells; images within a page aside, where any text may occur."""
    text = _EMBEDDED.sub("", file.read_text("utf-8"))
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
    Push a finished run's guided classifier, code, card, images and figures in one commit.

    The run's folder is only changed once all is pushed: its card is then the Hub's, and `pushed.json` holds it.

    Args:
        run: its output folder.
        repo: `owner/name`, or a name.
        licenses: go before the ones stated earlier, when the run was started or pushed.
        private: what a new repository is to be; a public one that there is already is refused.
        token: by default that of `hf auth login` or `HF_TOKEN`.
        revision: a branch, made where it is missing; `main` by default.

    Returns:
        The commit's address.

    Raises:
        InputError: it cannot be pushed; says why and what to do.
    """
    licenses = licenses or LicenseArguments()
    files = files_to_push(run)
    report = json.loads((run / "metrics.json").read_text())
    before = report.get("licenses", {})  # runs of older versions have none
    report["licenses"] = {
        one.name: vars(licenses)[one.name] or before.get(one.name) for one in fields(LicenseArguments)
    }
    with translate_hub_errors(run, repo), http_timeout():
        api = HfApi(token=token)
        api.whoami()
        repo_id = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.model_info(repo_id, revision=revision, timeout=_SECONDS)
        if private and not there.private:
            raise InputError(
                f"{repo_id} is there already and public: allow that (--public), or choose another repository."
            )
        if not private and there.private:
            print(f"{repo_id} is there already and private, and stays so; its settings on the Hub change that.")
        card = _card(run, report, repo_id, licenses, _card_there(api, there))
        operations = [CommitOperationAdd(_CARD, card.encode())]
        operations += [CommitOperationAdd(name, path) for name, path in files.items()]
        # With its parent named, an edit made on the Hub in the meantime is refused, not lost.
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message="Push a run of kgl-train",
            revision=revision,
            parent_commit=there.sha,
        )
    write_text(run / "final" / _CARD, card)
    write_json(run / "metrics.json", report)  # what was stated is known to the next push
    write_json(run / _PUSHED, _pushed(run) | {repo_id: card})
    return commit.commit_url


def write_card(run: Path, report: dict[str, Any]) -> None:
    """The card in `final/`, what its owner wrote into an earlier one kept."""
    config, licenses = KGLConfig.from_pretrained(run / "final"), LicenseArguments(**report["licenses"])
    path = run / "final" / _CARD
    text = path.read_text("utf-8") if path.exists() else None
    edits = _edits(text, card_metadata(report, config, licenses), licenses)
    write_text(path, card_text(report, config, licenses, edits))


def _card(run: Path, report: dict[str, Any], repo_id: str, now: LicenseArguments, card_there: str | None) -> str:
    """The card to push: the run's facts, and what its owner wrote here or on the Hub."""
    licenses = LicenseArguments(**report["licenses"])
    config = KGLConfig.from_pretrained(run / "final")
    metadata = card_metadata(report, config, licenses)
    path = run / "final" / _CARD
    here, there, pushed = (
        _edits(text, metadata, now)
        for text in (path.read_text("utf-8") if path.exists() else None, card_there, _pushed(run).get(repo_id))
    )
    edits = here if card_there is None else merged_edits(here, there, pushed)
    if edits.whole is not None:
        print(f"{_CARD} is pushed as it is: the marks around what kgl writes were removed.")
    return card_text(report, config, licenses, edits, repo_id)


def _edits(text: str | None, metadata: dict[str, Any], stated: LicenseArguments) -> Edits:
    return Edits() if text is None else read_edits(text, metadata, stated)


def _card_there(api: HfApi, there: ModelInfo) -> str | None:
    if _CARD not in {one.rfilename for one in there.siblings}:
        return None
    path = api.hf_hub_download(there.id, _CARD, revision=there.sha)
    return Path(path).read_text("utf-8")


def _pushed(run: Path) -> dict[str, str]:
    path = run / _PUSHED
    return json.loads(path.read_text()) if path.exists() else {}


@contextmanager
def http_timeout() -> Iterator[None]:
    session = get_session()
    before = session.timeout
    session.timeout = _SECONDS
    try:
        yield
    finally:
        session.timeout = before


@contextmanager
def translate_hub_errors(run: Path, repo: str) -> Iterator[None]:
    """What goes wrong on the way to the Hub as one sentence."""
    try:
        yield
    except InputError:
        raise
    except (
        HTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RuntimeError,
        ValueError,
    ) as error:
        again = f"The run in {run} is finished and whole; push it later with: kgl-push {run} {repo}"
        raise InputError(f"{repo} was not pushed: {_describe_error(error)} {again}") from error


def _describe_error(error: Exception) -> str:
    # A thread that uploads weights, and a download, tell what went wrong as the cause.
    if isinstance(error, (RuntimeError, LocalEntryNotFoundError)) and error.__cause__ is not None:
        return _describe_error(error.__cause__)
    words = " ".join(str(error).split())
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids the network; unset it."
    if isinstance(error, LocalTokenNotFoundError):
        return "you are not logged in; run hf auth login, or set HF_TOKEN."
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        advice = {
            401: "the Hub does not know your token; run hf auth login, or set HF_TOKEN to a valid one.",
            403: "your token may not write there; take one with write access to it, or another owner's name.",
            404: "there is no such repository or owner, or your token may not see it; check the name.",
            409: "something else is being pushed there at this moment; wait for it and push again.",
            412: "something else was pushed there in the meantime; push again.",
            413: "it is more than the Hub takes from you; make room in your account's storage, or ask the Hub for it.",
            429: "the Hub has had too many requests of yours; wait some minutes.",
        }
        if status in advice:
            return f"{advice[status]} (HTTP {status})"
        if status >= 500:
            return f"the Hub has a failure of its own (HTTP {status}); try again later."
        return f"the Hub refused (HTTP {status}): {words}"
    if isinstance(error, HTTPError):
        return (
            f"{constants.ENDPOINT} cannot be reached, or does not answer in time ({type(error).__name__}: {words}); "
            "check the network."
        )
    return words


__all__ = ["check_repo_id", "files_to_push", "push", "write_card"]
