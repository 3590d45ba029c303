"""README and docs: links, Python snippets, commands and settings."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

import kgl
from kgl.cli.main import check_arguments
from kgl.cli.reference import format_reference
from kgl.cli.train import help_all


ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "space/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "hub_card.md"  # a template
)
README_LINES = 150

# Names in commands that stand for the reader's own files, and ids on the Hub.
USER_PATHS = re.compile(
    r"(images|runs/.+|line/.+|models/.+|part\.png|parts\.csv|priors|predicted|grid\.png|\.venv(/.*)?"
    r"|__pycache__/\*|OWNER/\w+|microsoft/resnet-18|timm/\w+)"
)
SUBCOMMANDS = (
    "train",
    "prior",
    "data",
    "predict",
    "threshold",
    "curve",
    "next",
    "audit",
    "export",
    "push",
    "saliency",
)
FOREIGN_SETTINGS = {  # in the text, of other commands than kgl
    "--num_processes", "--mixed_precision", "--quiet", "--nproc-per-node", "--help", "--help-all", "--search",
    "--trust_remote_code", "--use_fsdp", "--labelled", "--examples", "--local-addr", "--max-restarts",
    "--max_restarts", "--no-python", "--rdzv-conf", "--rdzv_backend", "--rdzv-backend", "--machine_rank",
}  # fmt: skip
BENCHMARK_PAGES = re.compile(r"docs/(evidence|priors|results)\w*\.md")  # they name the settings of benchmarks
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_SETTING = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page: str, language: str) -> list[str]:
    """Return the contents of a page's fenced blocks of one language."""
    return [content for _, found, content in _FENCE.findall(text_of(page)) if found == language]


def without_code(text: str) -> str:
    return _INLINE_CODE.sub("", _FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings as GitHub makes them."""
    titles = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", title) for title in _HEADING.findall(_FENCE.sub("", text)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: str) -> list[list[str]]:
    """Return the commands of a page's bash blocks as words, comments left out."""
    found = []
    for block in fences(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for start in [0, *(index + 1 for index, word in enumerate(words) if word == "&&")]:
                command = words[start:]
                if command:
                    found.append(command[: command.index("&&")] if "&&" in command else command)
    return found


def test_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_resolve(page):
    for link in _LINK.findall(without_code(text_of(page))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES)
def test_code_files_named_in_the_text_exist(page):
    if page == "CHANGELOG.md":  # names what is gone, too
        return
    for code in _INLINE_CODE.findall(_FENCE.sub("", text_of(page))):
        for name in re.findall(r"(?<![\w/.])(?:\w+/)+\w+\.(?:py|yaml|toml)\b", code):
            assert name == name.upper() or "NAME" in name or "FORMAT" in name or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES)
def test_python_snippets_use_public_names(page):
    for snippet in fences(page, "python"):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"relative import in a snippet: {node.module}"
                names = {alias.name for alias in node.names}
                if node.module == "kgl":
                    assert names <= set(kgl.__all__), names
                    continue
                assert node.module.partition(".")[0] != "kgl", f"{node.module} is not public"
                module = importlib.import_module(node.module)
                missing = [name for name in names if not hasattr(module, name)]
                assert not missing, f"{node.module} has no {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_files_in_commands_exist_or_are_the_readers(page):
    for command in commands(page):
        for word in command[1:]:
            if word.startswith("-") or USER_PATHS.fullmatch(word):
                continue
            if "/" in word or Path(word).suffix in {".py", ".yaml", ".txt", ".png", ".csv", ".onnx", ".json", ".html"}:
                assert (ROOT / word).exists(), f"{' '.join(command)}: {word}"


def test_citation_file_is_valid_yaml():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    paper = citation["preferred-citation"]
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert [author["family-names"] for author in paper["authors"]] == ["Dong", "Liu", "Ye", "Liu"]
    assert paper["title"] in text_of("README.md")


def arguments_of_kgl(command: list[str]) -> list[str] | None:
    """Return the arguments of `kgl` that a command amounts to, None where it is another program's."""
    if command[0] == "kgl":
        return command[1:]
    for script in ("train", "prior"):
        if command[0] in ("accelerate", "torchrun", "python") and f"{script}.py" in command:
            return [script, *command[command.index(f"{script}.py") + 1 :]]
    return None


def kgl_commands(page: str) -> list[list[str]]:
    """Return the arguments of every kgl command on a page, in bash blocks and in the text."""
    in_text = [code.strip("`") for code in _INLINE_CODE.findall(_FENCE.sub("", text_of(page)))]
    in_text = [shlex.split(code) for code in in_text if re.match(r"kgl |.*\b(train|prior)\.py ", code)]
    found = (arguments_of_kgl(words) for words in [*commands(page), *in_text])
    return [arguments for arguments in found if arguments is not None]


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # for the recipes
    for arguments in kgl_commands(page):
        if not arguments or arguments[0] in ("--help", "--version"):
            continue
        assert arguments[0] in SUBCOMMANDS, arguments
        if len(arguments) > 1 and not arguments[1].startswith("--help"):  # `kgl train` alone is a name in the text
            check_arguments(arguments)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != "CHANGELOG.md" and not BENCHMARK_PAGES.match(page)]
)
def test_settings_named_in_the_text_exist(page):
    reference = set(_SETTING.findall(text_of("docs/cli.md"))) | set(_SETTING.findall(help_all().format()))
    named = {
        setting for code in _INLINE_CODE.findall(_FENCE.sub("", text_of(page))) for setting in _SETTING.findall(code)
    }
    assert named <= reference | FOREIGN_SETTINGS, named - reference - FOREIGN_SETTINGS


def test_command_line_reference_is_up_to_date():
    assert text_of("docs/cli.md") == format_reference()  # python -m kgl.cli.reference > docs/cli.md


@pytest.mark.parametrize("page", [*PAGES, "hub_card.md"])
def test_snippets_open_images_by_what_refuses_16_bits(page):
    for snippet in fences(page, "python"):
        assert "load_image(" not in snippet  # it clips them to white
        assert "Image.open(" not in snippet or page == "docs/export.md"


def test_snippet_of_the_export_refuses_16_bits(tmp_path, monkeypatch):
    (snippet,) = fences("docs/export.md", "python")
    session = SimpleNamespace(
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={"labels": "[]"}),
        run=lambda names, inputs: (inputs["image"], 0, 0),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=lambda path: session))
    monkeypatch.chdir(tmp_path)
    Image.new("L", (20, 10)).save("part.png")
    exec(snippet, found := {})
    assert found["probabilities"].shape == (1, 10, 20, 3)
    for kind in ("uint16", "int32", "float32"):
        Image.fromarray(np.full((10, 20), 300, kind)).save("part.png", format="TIFF")
        with pytest.raises(ValueError, match="More than 8 bits per channel"):
            exec(snippet, {})
