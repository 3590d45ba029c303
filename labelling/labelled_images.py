"""All labelled images of a run or a folder, and their frozen features, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from transformers import set_seed

from ..data.arguments import DataArguments
from ..data.loading import LoadedDataset, read_images
from ..data.schema import dataset_fingerprint
from ..errors import InputError
from ..heads_kgl import top_cells
from ..knowledge.arguments import PriorArguments
from ..modeling_kgl import KGLForImageClassification, class_probabilities
from ..training.arguments import ModelArguments
from ..training.frozen_features import CELLS_FILE, FrozenFeatures, fit_cells, write_frozen_features
from ..training.frozen_heads import FrozenHeads
from ..training.model_init import build_model, check_model, make_image_processor, with_cells
from ..training.settings import default_output_dir
from .runs import Run, read_run, read_run_images


_BATCH = 32


@dataclass(frozen=True)
class LabelledImages:
    """
    All usable images of a dataset, whatever split of it they are in, and how features of them are made.

    Attributes:
        images: of the data contract, with masks and `digest`.
        loaded: how they were read; `images` are its splits in a row.
        data_args: which ones they are.
        model_args: the pretrained backbone and the size of the images.
        seed: of the heads.
        run: that they were given by, None where they were given themselves.
    """

    images: Dataset
    loaded: LoadedDataset
    data_args: DataArguments
    model_args: ModelArguments
    seed: int
    run: Run | None

    @property
    def labels(self) -> np.ndarray:
        """The class index of each image, `(N,)`."""
        return np.asarray(self.images["label"][:])

    @property
    def groups(self) -> list[str]:
        """The group of each image; near-duplicates share one."""
        return self.images["group"][:]

    @property
    def defect_free_id(self) -> int | None:
        """The index of the class without defects, None where there is none."""
        label = self.loaded.defect_free_label
        return None if label is None else self.loaded.class_names.index(label)

    @property
    def hashes(self) -> np.ndarray:
        """Perceptual hashes, `(N, 4)` uint64."""
        return self.loaded.inspection.hashes[self.loaded.inspection.usable]

    @property
    def mask_shows_defect(self) -> list[bool | None]:
        """Whether the mask of each image marks a defect, None without a mask."""
        return [self.loaded.inspection.mask_shows_defect[row] for row in self.loaded.inspection.usable]

    @property
    def left_out(self) -> str | None:
        """What the run has trained beside heads on frozen features, which are all that is fitted here."""
        if self.run is None or not self.run.model_args.fine_tune:
            return None
        return "fine-tuned stage" if self.run.model_args.tunes_stage else "trained backbone"

    @property
    def name(self) -> str:
        """The name of the images, without their path."""
        return Path(default_output_dir(self.data_args)).name

    def output_dir(self, command: str) -> Path:
        """Return the default output folder of a command, `runs/NAME_command`."""
        folder = self.run.folder if self.run is not None else Path(default_output_dir(self.data_args))
        folder = Path(folder.absolute()) if folder.name in ("", "..") else folder
        return folder.with_name(f"{folder.name}_{command}")

    def settings(self) -> dict[str, Any]:
        """Return what decides the features and the folds, as JSON values."""
        return {
            "images": dataset_fingerprint(self.images),
            "backbone": self.model_args.backbone,
            "out_features": self.model_args.out_features,
            "size": list(self.model_args.size),
            "seed": self.seed,
            "duplicate_distance": self.loaded.duplicate_distance,
        }


def read_labelled_images(
    run: Path | None, data_args: DataArguments, backbone: str | None = None, size: tuple[int, int] | None = None
) -> LabelledImages:
    """
    Read all images of a run or of a dataset.

    Args:
        run: the folder of a run; its own images, backbone, size and seed are taken.
        data_args: the dataset, where no run is given.
        backbone: a pretrained one; the run's, or the default one.
        size: height and width of the images; the run's, or the default ones.

    Raises:
        InputError: the run or the images cannot be used, or the run has no pretrained backbone and none is given: what
            its own features say of images that they were trained on would be too good.
    """
    if run is None:
        loaded = read_images(data_args)  # first: a backbone may be asked of the Hub, for long
        given = {} if size is None else {"image_height": size[0], "image_width": size[1]}
        model_args = with_cells(ModelArguments(backbone=backbone, **given))
        return LabelledImages(_all_images(loaded), loaded, data_args, model_args, 0, None)
    of_run = read_run(run)
    model_args = of_run.model_args
    if backbone is not None:
        height, width = model_args.size
        model_args = ModelArguments(backbone=backbone, image_height=height, image_width=width)
    if model_args.backbone is None:
        raise InputError(
            f"{run}: it was trained from scratch, so its features have seen the labels and cannot judge them; name a "
            "pretrained backbone with --backbone."
        )
    if model_args.head != "stages" or backbone is not None:
        model_args = with_cells(model_args)
    loaded, _ = read_run_images(of_run)
    return LabelledImages(_all_images(loaded), loaded, of_run.data_args, model_args, of_run.seed, of_run)


def _all_images(loaded: LoadedDataset) -> Dataset:
    return concatenate_datasets(list(loaded.splits.values()))


def default_device() -> str:
    """Return the device that features are computed on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_features(labelled: LabelledImages, folder: Path) -> tuple[KGLForImageClassification, FrozenFeatures]:
    """
    Compute the features of all images into a folder; a stopped pass resumes.

    The projection of cells is fitted to 64 defect-free images of all, whichever of them are tested on later: it needs
    no label of a defect.

    Returns:
        The pretrained model with a fitted cell projection and new heads, and the features.

    Raises:
        InputError: the backbone cannot be used, or the folder not be written to.
    """
    set_seed(labelled.seed)
    model = build_model(labelled.model_args, labelled.loaded.class_names, labelled.loaded.defect_free_label)
    check_model(model, labelled.model_args.size, PriorArguments())
    model.to(default_device())
    image_processor = make_image_processor(labelled.model_args)
    fit_cells(model, labelled.images, image_processor, _BATCH, labelled.seed, folder / CELLS_FILE)
    features = write_frozen_features(
        labelled.images, model, image_processor, folder / "frozen_features", _BATCH, labelled.seed
    )
    return model, features


def select_features(features: FrozenFeatures, rows: np.ndarray) -> FrozenFeatures:
    """Return the features of some of the images, in the order of `rows`."""
    kept = np.isin(rows, features.cell_rows)
    cells = features.cells[np.searchsorted(features.cell_rows, rows[kept])]
    return FrozenFeatures(features.pooled[rows], features.flipped[rows], cells, np.flatnonzero(kept))


def fit_and_predict(
    model: KGLForImageClassification,
    features: FrozenFeatures,
    labels: np.ndarray,
    groups: list[str],
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
    heads: str,
) -> np.ndarray:
    """
    Fit heads to some images, and return the probabilities `(len(test), K)` of others.

    Where cells of an image were not kept, or no class is defect-free, the regression alone is fitted.

    Args:
        model: with a fitted cell projection; its heads are overwritten.
        features: of all images.
        labels: of all, `(N,)`.
        groups: of all.
        train: row numbers to fit to.
        test: row numbers to predict.
        seed: of the heads.
        heads: one of [`~kgl.labelling.choices.HEADS`]: those of the primary classifier take a tenth of a second, those
            of the final one many times as long.
    """
    of_train, of_test = select_features(features, train), select_features(features, test)
    fitter = FrozenHeads(model, of_train, labels[train], [groups[row] for row in train], seed)
    all_cells = len(of_train.cell_rows) == len(train) and len(of_test.cell_rows) == len(test)
    if heads == "final" and model.config.defect_free_id is not None and all_cells:
        fitter.fit_final()
        return _predict(model, of_test, True)
    fitter.fit_primary()
    return _predict(model, of_test, False)


@torch.no_grad()
def _predict(model: KGLForImageClassification, features: FrozenFeatures, with_heat_map: bool) -> np.ndarray:
    scores = torch.zeros(len(features.pooled), 1)
    if with_heat_map:
        parts = torch.from_numpy(features.cells).split(_BATCH)
        maps = (model.saliency_head.score(part.float().to(model.device)) for part in parts)
        scores = torch.cat([top_cells(one, model.config.top_cells).cpu() for one in maps])
    pooled = torch.cat([torch.from_numpy(features.pooled), scores], dim=1).to(model.device)
    return class_probabilities(model.classifier(pooled) / model.config.temperature).cpu().numpy()


__all__ = [
    "LabelledImages",
    "compute_features",
    "default_device",
    "fit_and_predict",
    "read_labelled_images",
    "select_features",
]
