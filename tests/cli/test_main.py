"""The command `kgl`: help without heavy imports, unknown commands, and exit codes."""

import subprocess
import sys
import time
from importlib.metadata import version

import pytest

from kgl.cli.main import COMMANDS, check_arguments, main
from kgl.errors import InputError


HEAVY = ("torch", "transformers", "datasets", "numpy", "pandas", "PIL")
HELP_SCRIPT = """
import sys, time
started = time.process_time()  # of this process alone: machines are shared
from kgl.cli.main import main
main(sys.argv[1:])
print(time.process_time() - started, [name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], [], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    script = HELP_SCRIPT.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, _, imported = done.stderr.strip().partition(" ")
    assert imported == "[]"
    assert float(seconds) < 0.5  # a tenth of it on an idle core
    assert "usage: kgl" in done.stdout


def test_help_is_fast_as_a_process():
    shortest = min(_seconds("-m", "kgl.cli.main", "train", "--help") for _ in range(3))
    control = min(_seconds("-c", "import argparse, dataclasses") for _ in range(3))
    assert shortest - control < 0.5


def _seconds(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def test_train_help_shows_about_thirty_settings(capsys):
    main(["train", "--help"])
    page = capsys.readouterr().out
    shown = [line.split()[0] for line in page.splitlines() if line.startswith("  --")]
    assert 25 <= len(shown) <= 40 and len(set(shown)) == len(shown)
    assert "example:\n  kgl train images" in page
    assert "--eval_strategy" not in page


def test_all_settings_are_shown_but_the_refused(capsys):
    main(["train", "--help-all"])
    page = capsys.readouterr().out
    assert "--gradient_accumulation_steps" in page and "--kg_positive_weight" in page and "--mask_column" in page
    for refused in ("--eval_strategy", "--load_best_model_at_end", "--resume_from_checkpoint", "--do_train"):
        assert f"{refused} " not in page


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"kgl {version('kgl-defects')}\n"


def test_unknown_command_suggests_one(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    assert "there is no command trian; did you mean kgl train?" in capsys.readouterr().err


def test_check_arguments_reads_no_files():
    settings = check_arguments(["train", "no/such/folder", "--seed", "1"])
    assert (settings.data.data_dir, settings.training.seed) == ("no/such/folder", 1)
    with pytest.raises(InputError, match=r"unknown setting --sed 1; did you mean --seed\?"):
        check_arguments(["train", "no/such/folder", "--sed", "1"])


def test_reader_that_ends_early_gets_no_traceback(image_folder):
    command = f"{sys.executable} -m kgl.cli.main data {image_folder} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
