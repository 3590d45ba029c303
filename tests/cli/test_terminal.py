"""Terminals whose code page lacks letters of the class names."""

import os
import subprocess
import sys
from pathlib import Path

from tiny import save_noise


def test_class_names_outside_the_code_page(tmp_path):
    for label in ("good", "\u5212\u75d5"):
        for index in range(12):
            save_noise(tmp_path / "images" / label / f"{index}.png", index, len(label))
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(root)}
    code = "from kgl.cli.main import main; main(['data', 'images'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True)
    assert b"Traceback" not in done.stderr and done.returncode == 0, done.stderr
    assert b"\\u5212\\u75d5" in done.stdout
