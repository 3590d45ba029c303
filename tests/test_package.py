"""The package as a whole: public names, rooms, import order and the wheel's contents."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kgl


ROOT = Path(kgl.__file__).parent
# A module imports from its own room and from the ones above it, never from the ones below or beside it.
ROOMS = (
    {"errors"},
    {"configuration_kgl"},
    {"handler", "heads_kgl"},
    {"pipeline_kgl"},
    {"modeling_kgl"},
    {"saliency", "data"},
    {"knowledge"},
    {"training"},
    {"evaluation"},
    {"labelling"},
    {"hub", "exporters"},
    {"train", "prior", "cli"},
)
RANKS = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
JOBS = ROOMS[-1]  # the two scripts and the command line call each other


def package_files() -> list[Path]:
    return sorted([*ROOT.glob("*.py"), *(path for room in RANKS for path in (ROOT / room).rglob("*.py"))])


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms of all kgl modules that a file imports, inside functions too."""
    parts = ("kgl", *path.relative_to(ROOT).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = parts[: len(parts) - node.level]
                module = ".".join((*base, *([module] if module else [])))
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "kgl" else [module]
        found |= {name.split(".")[1] for name in names if name.startswith("kgl.")}
    return found


def test_public_names_can_be_imported():
    for name in kgl.__all__:
        assert getattr(kgl, name).__name__ == name


def test_every_file_is_in_a_room():
    assert {room_of(path) for path in package_files()} - {"__init__"} == set(RANKS)


@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    room = room_of(path)
    if room == "__init__":  # lazy: it names modules, and imports none
        assert imported_rooms(path) == set()
        return
    for other in imported_rooms(path):
        allowed = other == room or RANKS[other] < RANKS[room] or (room in JOBS and other in JOBS)
        assert allowed, f"{path.relative_to(ROOT)} imports {other}, which is not above {room}"


def test_wheel_holds_every_file_of_the_rooms(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path,
         _source_copy(tmp_path / "source")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("kgl/")}
    expected = {f"kgl/{path.relative_to(ROOT).as_posix()}" for path in package_files()}
    assert packed == expected | {f"kgl/{name}" for name in SOURCES if "/" in name or name == "hub_card.md"}


def _source_copy(folder: Path) -> Path:
    """The files that a build reads: it writes into its source folder."""
    for path in [*package_files(), *(ROOT / name for name in SOURCES)]:
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return folder


SOURCES = (
    "pyproject.toml", "README.md", "LICENSE", "hub_card.md", "evaluation/report.html.jinja",
    "evaluation/curve.html.jinja", "evaluation/galleries.html.jinja", "evaluation/strips.html.jinja",
    "labelling/audit.html.jinja",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "backbones/kgl-tiny").iterdir())),
)  # fmt: skip


def test_importing_kgl_imports_nothing_heavy():
    script = "import sys, kgl; print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_hub_files_need_torch_and_transformers_only():
    script = (
        "import sys\n"
        "for name in ('datasets', 'kornia', 'skimage', 'sklearn', 'matplotlib', 'torchvision', 'timm'):\n"
        "    sys.modules[name] = None\n"
        "import kgl.modeling_kgl\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is {node.end_lineno - node.lineno + 1} lines long"
