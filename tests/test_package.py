"""The package as a whole."""

import subprocess
import sys

import kgl


def test_public_names_are_there():
    for name in kgl.__all__:
        assert getattr(kgl, name).__name__ == name


def test_importing_kgl_imports_nothing_heavy():
    script = "import sys, kgl; print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_files_for_the_hub_need_torch_and_transformers_only():
    script = (
        "import sys\n"
        "for name in ('datasets', 'kornia', 'skimage', 'sklearn', 'matplotlib', 'torchvision', 'timm'):\n"
        "    sys.modules[name] = None\n"
        "import kgl.modeling_kgl\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
