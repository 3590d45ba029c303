"""
Classify images of surfaces in the browser, with heat maps.

It needs this folder and the packages in `requirements.txt`, not kgl: a model's code travels with its weights. It runs
on your machine (`python space/app.py --help`) and, unchanged, as a Space, where variables replace the flags.
"""

import argparse
import atexit
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quotas
from heap import limit_arenas, return_freed
from image_files import Example, read_examples
from input_error import InputError
from labelled_set import LabelledSet, read_labelled_set
from upload_folder import UploadFolder


HERE = Path(__file__).parent
EXAMPLE_FOLDERS = (HERE / "examples", HERE.parent / "examples")  # of a Space, of the repository
log = logging.getLogger("app")
GRADIO_VARIABLES = ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "GRADIO_NUM_PORTS", "GRADIO_ROOT_PATH")


@dataclass(frozen=True)
class Inputs:
    """The inputs of the page: a defect-detection pipeline, a labelled set, and examples."""

    pipeline: Callable[..., dict[str, Any]]
    labelled_set: LabelledSet | None
    examples: list[Example]


def _path(text: str) -> Path:
    return Path(text).expanduser()


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags, those of the command line if `argv` is `None`; variables are their defaults."""
    parser = argparse.ArgumentParser(
        prog="app.py", description=__doc__.strip().split("\n")[0], allow_abbrev=False,
        epilog="On a Space: the variables KGL_MODEL, KGL_TRUST_REMOTE_CODE=1, KGL_LABELLED and KGL_EXAMPLES.",
    )  # fmt: skip
    parser.add_argument(
        "--model",
        type=os.path.expanduser,
        default=os.environ.get("KGL_MODEL"),
        help="A model trained by kgl: a folder or a Hub id.",
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", default=os.environ.get("KGL_TRUST_REMOTE_CODE") == "1",
        help="Run the code in the model's folder; required, because it is what reads the weights.",
    )  # fmt: skip
    parser.add_argument(
        "--labelled", type=_path, default=os.environ.get("KGL_LABELLED"),
        help="predictions.csv of a training run: the page counts the decisions on it at every threshold.",
    )  # fmt: skip
    parser.add_argument(
        "--examples", type=_path, default=os.environ.get("KGL_EXAMPLES"),
        help="A folder of images to choose from (default: examples/ here or one level up).",
    )  # fmt: skip
    return parser.parse_args(argv)


def read_inputs(args: argparse.Namespace) -> Inputs:
    """
    Read and check everything that the app is started with.

    Raises:
        InputError: a flag is missing, or what it names cannot be used.
    """
    if not args.model:
        raise InputError("--model: give a folder written by `kgl train` or a Hub id (on a Space: KGL_MODEL).")
    folder = args.examples or next((folder for folder in EXAMPLE_FOLDERS if folder.is_dir()), None)
    try:
        examples = [] if folder is None else read_examples(folder)
    except InputError as error:
        raise InputError(f"--examples {error}") from error
    if args.labelled is not None and not args.labelled.is_file():
        raise InputError(f"--labelled {args.labelled}: there is no such file.")
    pipeline = load_pipeline(args.model, args.trust_remote_code)
    config = pipeline.model.config
    if args.labelled is None:
        return Inputs(pipeline, None, examples)
    if config.defect_free_label is None:
        raise InputError("--labelled: the model has no defect-free class, so it makes no decisions to count.")
    try:
        labelled_set = read_labelled_set(
            args.labelled.read_bytes(), args.labelled.name, config.label2id, config.defect_free_label
        )
    except InputError as error:
        raise InputError(f"--labelled {args.labelled}: {error}") from error
    return Inputs(pipeline, labelled_set, examples)


def load_pipeline(model: str, trusted: bool) -> Callable[..., dict[str, Any]]:
    """
    Load a defect-detection pipeline from a folder or the Hub; weights are read as safetensors, never from a pickle.

    Raises:
        InputError: there is no such model, or its code is not trusted.
    """
    if not trusted:
        raise InputError(
            "--trust_remote_code: a model's folder holds code that reads the weights, and it runs on this machine. If "
            "you trust its author, give this flag (on a Space: KGL_TRUST_REMOTE_CODE=1)."
        )
    if (Path(model) / "final").is_dir():
        raise InputError(f"--model {model}: this is the folder of a run. Use {Path(model) / 'final'}.")
    _make_cache_writable()
    from transformers import pipeline  # seconds: after the checks above

    try:
        return pipeline(
            "defect-detection", model=model, trust_remote_code=True, model_kwargs={"use_safetensors": True}
        )
    except Exception as error:  # the model's own code may raise anything
        reason = f"{type(error).__name__}: {error}".strip()
        if "Traceback" in reason:  # transformers quotes the attempts before the last one
            reason = reason.splitlines()[-1]
        raise InputError(f"--model {model}: not a loadable model of kgl. {' '.join(reason.split())}") from error


def _make_cache_writable() -> None:
    """Keep models' code, which transformers copies, in a temporary folder where the home cannot be written."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    try:
        Path(home).expanduser().mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=Path(home).expanduser()).close()
    except OSError:
        cache = tempfile.TemporaryDirectory(prefix="kgl-models-")
        atexit.register(cache.cleanup)
        os.environ["HF_HOME"] = cache.name


def tidy_until(stopped: threading.Event, folder: UploadFolder) -> None:
    """Delete leftovers of uploads, and return freed memory, at intervals until `stopped` is set."""
    while not stopped.wait(quotas.SWEEP_SECONDS):
        try:
            folder.sweep()
        except OSError:
            log.exception("some uploads could not be deleted; the next sweep tries again")
        return_freed()


def serve(inputs: Inputs, path: Path) -> None:
    """Serve the page until interrupted, with uploads in the folder `path`."""
    os.environ["GRADIO_TEMP_DIR"] = str(path)
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = str(quotas.MAX_ANALYTICS_EVENTS)
    from page import build_page, launch_settings  # Gradio takes seconds: after the checks of the inputs

    folder, stopped = UploadFolder(path), threading.Event()
    page = build_page(inputs.pipeline, inputs.labelled_set, inputs.examples)
    sweeper = threading.Thread(target=tidy_until, args=(stopped, folder), daemon=True)
    sweeper.start()
    page.launch(**launch_settings(page, inputs.pipeline.model.config, folder))
    stopped.set()
    sweeper.join()
    folder.close()  # cuts off uploads that are still arriving


def main() -> None:
    """Serve the page; one sentence and exit code 2 where an input cannot be used."""
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for name in [name for name in os.environ if name.startswith("GRADIO_") and name not in GRADIO_VARIABLES]:
        del os.environ[name]  # several open what is closed here
    limit_arenas()  # before there are threads
    try:
        inputs = read_inputs(args)
    except (InputError, OSError) as error:
        print(f"app.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the uploads are deleted then, too
    with tempfile.TemporaryDirectory(prefix="kgl-app-") as path:
        serve(inputs, Path(path))


if __name__ == "__main__":
    main()
