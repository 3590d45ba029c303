"""All commands without a home directory, as in a container or a service."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from jobs import write_recipe
from tiny import make_images


CODE = """
import sys
from kgl.cli.main import main
for arguments in (
    ["data", "images"],
    ["data", "labels.csv"],
    ["data", "--hub_dataset", "hub", "--label_column", "label"],
    ["train", "recipe.yaml", "--output_dir", "run"],
    ["train", "recipe.yaml", "--output_dir", "run"],
    ["predict", "images", "--model", "run/final", "--output", "predicted"],
    ["prior", "images", "--model", "run/primary", "--output_dir", "priors"],
    ["saliency", "images", "--model", "run/primary", "--output", "grid.png"],
    *([["export", "run/final"]] if sys.argv[1] == "export" else []),
):
    main(arguments)
try:
    main(["push", "run", "owner/name"])
except SystemExit as error:
    assert error.code == 2
"""


def test_no_command_needs_a_home(tmp_path):
    make_images(tmp_path / "images")
    files = sorted(path.relative_to(tmp_path) for path in (tmp_path / "images").rglob("*.png"))
    table = pd.DataFrame({"image": map(str, files), "label": [path.parent.name for path in files]})
    table.to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "hub").mkdir()
    rows = {"image": [path.read_bytes() for path in map(tmp_path.joinpath, files)], "label": table["label"]}
    pd.DataFrame(rows).to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    write_recipe(tmp_path, data_dir="images")
    extra = "export" if find_spec("onnxruntime") else "none"
    unset = ("HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_DATASETS_CACHE", "HF_MODULES_CACHE",
             "HF_HUB_OFFLINE")  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    # No user can make a folder below a file; the address answers nothing.
    environment |= {"HOME": "/dev/null/home", "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", CODE, extra], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "matplotlib" not in done.stderr.lower(), done.stderr
    written = ("run/report.html", "predicted/predictions.csv", "priors/priors", "grid.png")
    assert all((tmp_path / name).exists() for name in written)
    assert "kgl push: error: owner/name was not pushed" in done.stderr
