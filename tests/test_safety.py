"""Safety: files of others run no code, and have no other files of this machine read or written."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from packaging.requirements import Requirement
from PIL import Image as PILImage
from tiny import TINY_BACKBONES, tiny_model
from transformers import ResNetModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.trainer_pt_utils import safe_globals

from kgl.cli.train import parse
from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.errors import InputError
from kgl.evaluation.predict_folder import predict_folder
from kgl.modeling_kgl import KGLForImageClassification
from kgl.train import run
from kgl.training.arguments import ModelArguments
from kgl.training.model_init import build_model, load_classifier


class _Harmful:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.proof),)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_job_writes_and_loads_no_pickle_that_can_run_code(image_folder, tmp_path, monkeypatch):
    """Optimizer, schedule and random state, which the Trainer keeps beside the weights, are tensors and numbers."""
    output = tmp_path / "run"
    settings = [
        "--data_dir", image_folder, "--defect_free_label", "good", "--output_dir", output, "--use_cpu", "true",
        "--image_height", 32, "--image_width", 32, "--num_folds", 2, "--validation_share", 0, "--report_to", "none",
        "--backbone_config", json.dumps(TINY_BACKBONES["resnet"].to_dict()), "--num_train_epochs", 2,
        "--per_device_train_batch_size", 4, "--save_strategy", "epoch", "--keep_checkpoints", "true",
    ]  # fmt: skip
    loads = []
    load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *args, **kwargs: (loads.append(kwargs.get("weights_only")), load(*args, **kwargs))[1]
    )
    stopped = KGLForImageClassification.forward

    def killed(self, *args, **kwargs):
        if list((output / "final").glob("checkpoint-*")):
            raise KeyboardInterrupt
        return stopped(self, *args, **kwargs)

    monkeypatch.setattr(KGLForImageClassification, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        run(parse(list(map(str, settings))))
    kept = [path for path in output.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    assert {path.name for path in kept} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    with safe_globals():  # numpy's random state
        for path in kept:
            load(path, weights_only=True)
    monkeypatch.setattr(KGLForImageClassification, "forward", stopped)
    run(parse(list(map(str, settings))))
    assert loads and all(loads)
    assert {path.name for path in output.rglob("*") if path.is_file() and _is_pickle(path)} == {
        "optimizer.pt", "scheduler.pt", "rng_state.pth",
    }  # fmt: skip


def _is_pickle(path: Path) -> bool:
    """A bare pickle, or an archive of torch's around one."""
    if zipfile.is_zipfile(path):
        return any(name.endswith(".pkl") for name in zipfile.ZipFile(path).namelist())
    start = path.read_bytes()[:2]
    return start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")


def test_weights_in_a_pickle_are_not_loaded(saved, tmp_path):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(_Harmful(tmp_path / "proof")))
    with pytest.raises(InputError, match=r"not a classifier saved by kgl train\. .*model\.safetensors"):
        load_classifier(str(saved))
    with pytest.raises(pickle.UnpicklingError):
        KGLForImageClassification.from_pretrained(saved)
    assert not (tmp_path / "proof").exists()


def test_a_backbone_in_a_pickle_runs_no_code(tmp_path):
    backbone = tmp_path / "backbone"
    ResNetModel(TINY_BACKBONES["resnet"]).save_pretrained(backbone)
    (backbone / "model.safetensors").unlink()
    (backbone / "pytorch_model.bin").write_bytes(pickle.dumps(_Harmful(tmp_path / "proof")))
    with pytest.raises(InputError, match=r"--backbone .*backbone: "):
        build_model(ModelArguments(backbone=str(backbone)), ["good", "scratch"], "good")
    assert not (tmp_path / "proof").exists()


def test_a_models_code_runs_on_the_users_flag_alone(saved, image_folder, tmp_path):
    """The commands have their own code for a classifier and read a folder of others as data only."""
    proof = tmp_path / "proof"
    for file in saved.glob("*.py"):
        file.write_text(f"{file.read_text()}\nimport os\nos.makedirs({str(proof)!r}, exist_ok=True)\n")
    load_classifier(str(saved))
    predict_folder([image_folder], str(saved), tmp_path / "predicted")
    assert not proof.exists()
    code = f"from transformers import pipeline\npipeline('image-classification', model={str(saved)!r}"
    refused = subprocess.run(
        [sys.executable, "-c", f"{code})"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert refused.returncode and "trust_remote_code" in refused.stderr
    assert not proof.exists()
    subprocess.run([sys.executable, "-c", f"{code}, trust_remote_code=True)"], check=True)
    assert proof.exists()  # so this model's code was one that would have been seen


def test_a_backbones_code_is_never_run(tmp_path):
    backbone = tmp_path / "backbone"
    backbone.mkdir()
    proof = tmp_path / "proof"
    config = {"model_type": "stranger", "auto_map": {"AutoConfig": "stranger.StrangerConfig"}}
    (backbone / "config.json").write_text(json.dumps(config))
    (backbone / "stranger.py").write_text(f"import os\nos.mkdir({str(proof)!r})\n")
    with pytest.raises(InputError, match=r"--backbone .*backbone: .*custom code"):
        build_model(ModelArguments(backbone=str(backbone)), ["good", "scratch"], "good")
    assert not proof.exists()


def _repository(folder: Path, images: list[dict], masks: list[dict] | None = None) -> DataArguments:
    """A dataset of the Hub whose rows hold these values for images."""
    columns = {"image": images, "label": [at % 2 for at in range(len(images))]}
    features = {"image": Image(decode=False), "label": ClassLabel(names=["good", "scratch"])}
    if masks is not None:
        columns["mask"], features["mask"] = masks, Image(decode=False)
    folder.mkdir()
    table = Dataset.from_dict(columns, features=Features(features))
    parquet.write_table(table.data.table, folder / "train.parquet")  # Dataset.to_parquet reads the files first
    return DataArguments("hub", hub_dataset=str(folder), validation_share=0, num_folds=2)


@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize("where", ["absolute", "climbing", "relative", "address", "archive", "link", "cache", "long"])
def test_a_data_sets_rows_open_no_file_but_its_own(image_folder, tmp_path, monkeypatch, column, where):
    secret = tmp_path / "secret.png"
    PILImage.new("L", (32, 32)).save(secret)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kgl.data.readers.hub.HF_HUB_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "datasets--me--private" / "snapshots" / "0" / "secret.png"
    cached.parent.mkdir(parents=True)
    shutil.copy(secret, cached)
    path = {
        "absolute": str(secret), "climbing": str(tmp_path / "hub" / ".." / "secret.png"), "relative": "secret.png",
        "address": "https://example.com/secret.png", "archive": f"zip://secret.png::{tmp_path / 'secret.zip'}",
        "link": str(tmp_path / "hub" / "link.png"), "cache": str(cached), "long": f"{tmp_path}/{300 * 'a'}",
    }[where]  # fmt: skip
    content = [{"bytes": (image_folder / "good" / f"{at}.png").read_bytes(), "path": None} for at in range(8)]
    asked = [*content[:2], {"bytes": None, "path": path}, *content[3:]]
    images, masks = (asked, None) if column == "image" else (content, asked)
    args = _repository(tmp_path / "hub", images, masks)
    (tmp_path / "hub" / "link.png").symlink_to(secret)
    args.mask_column = "mask" if column == "mask" else None
    reason = "lies outside of the folder" if where == "link" else "is no file of this"
    with pytest.raises(InputError, match=rf"--hub_dataset .*hub, split train, row 3: {column} .* {reason}"):
        load_defect_dataset(args)


def test_an_archive_writes_nowhere_else(image_folder, tmp_path, monkeypatch):
    """Reading an archive writes into the caches only, with any names of its members."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache / "arrow")
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", cache / "downloads")
    folder = tmp_path / "hub"
    folder.mkdir()
    names = [f"{at}.png" for at in range(15)] + [
        "../evil.png",
        "good/../../../../evil.png",
        str(tmp_path / "evil.png"),
    ]
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        images = sorted(image_folder.rglob("*.png"))
        for name, image in zip(names, images, strict=True):
            archive.write(image, name)
        rows = [
            {"file_name": name, "label": image.parent.name} for name, image in zip(names[:15], images, strict=False)
        ]
        archive.writestr("metadata.jsonl", "\n".join(map(json.dumps, rows)))
    with _written() as written, suppress(InputError):  # some versions want a row for every image
        load_defect_dataset(DataArguments("hub", hub_dataset=str(folder), validation_share=0, num_folds=2))
    assert written
    assert not [path for path in written if not path.is_relative_to(cache)]


_watched: list[list[Path]] = []


@contextmanager
def _written() -> Iterator[list[Path]]:
    """Every file that this process opens for writing, and every folder that it makes."""
    paths: list[Path] = []
    _watched.append(paths)
    sys.addaudithook(_note)  # there is no taking it away
    yield paths
    _watched.clear()


def _note(event: str, arguments: tuple) -> None:
    writes = os.O_WRONLY | os.O_RDWR
    opens = event == "open" and isinstance(arguments[0], str) and arguments[2] & writes
    for paths in _watched if opens or event == "os.mkdir" else ():
        paths.append(Path(os.path.abspath(arguments[0])))


def test_a_published_model_needs_few_packages(saved, image_folder, auto_image_processor):
    """torch, transformers, safetensors and pillow, with what these require themselves; and no kgl."""
    allowed = _with_requirements({"torch", "transformers", "safetensors", "pillow"})
    owners = packages_distributions()
    refused = sorted(module for module, owner in owners.items() if not allowed & {_normal(name) for name in owner})
    assert {"kgl", "datasets", "accelerate", "sklearn", "scipy", "skimage", "kornia"} <= set(refused)
    code = f"""
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {set(refused)!r} else super().find_spec(name, path, target)

sys.meta_path = [finder for finder in sys.meta_path if finder in (BuiltinImporter, FrozenImporter)] + [Installed]
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from transformers.image_utils import load_image

folder, image = {str(saved)!r}, {str(image_folder / "good" / "0.png")!r}
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(folder)
with torch.no_grad():
    logits = model(**processor(load_image(image), return_tensors="pt")).logits
found = pipeline("defect-detection", model=folder, trust_remote_code=True)(image)
assert abs(found["scores"]["pit"] - logits.softmax(-1)[0, 2].item()) < 1e-6
assert pipeline("image-classification", model=folder, trust_remote_code=True)(image)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=saved.parent, env={**os.environ, "PYTHONPATH": ""})


def _with_requirements(names: set[str]) -> set[str]:
    """Distributions with all that they require unconditionally, at any depth."""
    found, waiting = set(), {_normal(name) for name in names}
    while waiting:
        name = waiting.pop()
        found.add(name)
        for text in requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting |= {_normal(requirement.name)} - found
    return found


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
