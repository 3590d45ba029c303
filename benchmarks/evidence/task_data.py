"""Data of the evidence bench's tasks: images in folds, cached features of the frozen stages, new classifiers."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from transformers import BaseImageProcessor, set_seed
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.benchmarks.evidence.plan import SHARED, TASKS, Task
from kgl.configuration_kgl import KGLConfig
from kgl.data.arguments import DataArguments
from kgl.data.loading import read_images
from kgl.data.schema import dataset_fingerprint, defect_dataset
from kgl.data.splits import group_folds
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.augmentation import PairedAugmentation
from kgl.training.feature_cache import cache_frozen_features


VIEWS = 8  # augmented views cached per image


@cache
def _read_task(task_name: str) -> tuple[Dataset, str | None]:
    """Return all images of a task and the name of its class without defects."""
    data = TASKS[task_name].data
    if data["dataset"] != "boards":
        loaded = read_images(DataArguments(**data))
        return loaded.splits["train"], loaded.defect_free_label
    # One board, photographed 100 times: all images are near-duplicates, so each is a group of its own.
    paths = sorted(Path(data["data_dir"]).glob("*/*/*.jpg"))
    images = defect_dataset(
        images=[str(path) for path in paths],
        labels=[path.parent.name for path in paths],
        names=["anomaly", "normal"],
        file_names=[str(path.relative_to(data["data_dir"])) for path in paths],
    )
    return images.add_column("digest", [hashlib.sha1(path.read_bytes()).hexdigest() for path in paths]), "normal"


@cache
def load_images(task_name: str) -> Dataset:
    """Load all images of a task with masks, their row number `index` and their `fold`."""
    task = TASKS[task_name]
    images, good = _read_task(task_name)
    fold_of = np.empty(len(images), dtype=int)
    for fold, (_, held_out) in enumerate(group_folds(images, task.folds, 0, "folds")):
        fold_of[held_out] = fold
    images = images.add_column("fold", fold_of.tolist())
    if task.binary:  # after the folds: they are those of the task with all classes, so that its search stays apart
        names = images.features["label"].names
        labels = [int(names[label] != good) for label in images["label"]]
        images = images.remove_columns("label").add_column("label", labels)
        images = images.cast_column("label", ClassLabel(names=[good, "defect"]))
    return images.add_column("index", list(range(len(images))))


def defect_free_class(task_name: str) -> str | None:
    """Return the name of the task's class without defects."""
    return _read_task(task_name)[1]


@cache
def load_features(task_name: str, cache_dir: Path) -> np.ndarray:
    """Return the output of the frozen stages for all images and views, `(N, views, C, h, w)`, cached on disk."""
    task = TASKS[task_name]
    cache_dir.mkdir(parents=True, exist_ok=True)
    set_seed(0)
    model, images = new_model(task_name, {}), load_images(task_name)
    processor, augmentation = image_processor(task), PairedAugmentation()
    settings = (images["digest"][:], processor.to_dict(), augmentation, task.freeze_stages, VIEWS)
    fingerprint = hashlib.sha1(repr(settings).encode())
    for name, tensor in model.backbone.state_dict().items():
        fingerprint.update(name.encode() + tensor.numpy().tobytes())
    path = cache_dir / f"{task.data['dataset']}_{fingerprint.hexdigest()[:16]}.npy"
    return cache_frozen_features(path, images, model, processor, task.freeze_stages, VIEWS, augmentation)


def image_processor(task: Task) -> BaseImageProcessor:
    """Return a processor that resizes to the task's size and normalizes as the backbone expects (ImageNet)."""
    size = {"height": task.size[0], "width": task.size[1]}
    return ViTImageProcessorPil(size=size, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD)


def new_model(task_name: str, config: dict[str, Any]) -> KGLForImageClassification:
    """Return a classifier with new heads."""
    task = TASKS[task_name]
    names = load_images(task_name).features["label"].names
    config = {"id2label": dict(enumerate(names)), "defect_free_label": defect_free_class(task_name), **config}
    if task.backbone is not None:
        stages = {"out_features": config.pop("out_features")} if "out_features" in config else {}
        return KGLForImageClassification(KGLConfig(backbone_config=task.backbone | stages, **config))
    backbone = str(SHARED / "models/resnet-18")
    return KGLForImageClassification.from_backbone(backbone, **({"out_features": ["stage3"]} | config))


@cache
def data_fingerprint(task_name: str) -> str:
    """Return a hash of the task's images, classes, masks, groups and folds."""
    images = load_images(task_name)
    groups = images["group"][:]
    first_rows = [groups.index(group) for group in groups]  # independent of the groups' names
    parts = [dataset_fingerprint(images), first_rows, images["fold"][:]]
    return hashlib.sha1(repr(parts).encode()).hexdigest()[:16]
