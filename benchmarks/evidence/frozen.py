"""Arms on frozen features: the product's heads, their controls, and rivals, all on the same cached maps."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ResNetConfig, set_seed

from kgl.benchmarks.evidence import rivals
from kgl.benchmarks.evidence.plan import TASKS
from kgl.benchmarks.evidence.task_data import image_processor, load_images, new_model
from kgl.data.images import to_pixel_values
from kgl.data.masks import mask_to_array, mask_to_grid
from kgl.evaluation.maps import image_average_precision
from kgl.evaluation.metrics import DefectClassification
from kgl.evaluation.predictions import Predictions, most_probable_defects
from kgl.heads_kgl import pool_maps, top_cells
from kgl.knowledge.cells import FITTED_IMAGES, fit_projection, raw_cells
from kgl.knowledge.good_parts import GoodParts
from kgl.knowledge.thresholds import otsu_threshold
from kgl.modeling_kgl import KGLForImageClassification, class_probabilities
from kgl.saliency.cam import grad_cam_plus_plus, head_gradient
from kgl.saliency.maps import fuse, to_grid, to_peak_one, to_uint8
from kgl.training.cell_scores import CellScore
from kgl.training.frozen_features import FrozenFeatures
from kgl.training.frozen_heads import FrozenHeads


_BATCH = 32
Maps = tuple[torch.Tensor, ...]


@cache
def load_maps(task_name: str, cache_dir: Path) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return the maps of all images, `(N, C_i, h_i, w_i)` float16, and the pooled mirrored images, `(N, P)`."""
    task, images = TASKS[task_name], load_images(task_name)
    set_seed(0)
    model = _stages_model(task_name).eval()
    stages = model.backbone.out_features
    fingerprint = hashlib.sha1(repr((images["digest"][:], image_processor(task).to_dict(), stages)).encode())
    cache_dir.mkdir(parents=True, exist_ok=True)
    stem = cache_dir / f"{task.data['dataset']}_maps_{fingerprint.hexdigest()[:16]}"
    files = [stem.with_name(f"{stem.name}_{name}.npy") for name in (*stages, "mirrored")]
    if not all(file.exists() for file in files):
        parts: list[list[np.ndarray]] = [[] for _ in files]
        for batch in images.select_columns("image").iter(_BATCH):
            pixel_values = to_pixel_values(batch["image"], image_processor(task))
            with torch.no_grad():
                maps, _ = model.features(pixel_values)
                mirrored, _ = model.features(pixel_values.flip(3))
            for part, one in zip(parts, (*maps, pool_maps(mirrored)), strict=True):
                part.append((one if one.dim() == 2 else one.half()).numpy())
        for file, part in zip(files, parts, strict=True):
            np.save(file, np.concatenate(part))
    *maps, mirrored = (np.load(file, mmap_mode="r") for file in files)
    return tuple(maps), np.asarray(mirrored)


def _stages_model(task_name: str) -> KGLForImageClassification:
    names = ResNetConfig(**(TASKS[task_name].backbone or {})).stage_names
    return new_model(task_name, {"head": "stages", "out_features": list(names[1:][-3:])})


class FrozenBench:
    """
    Arms on the frozen features of one task, budget and seed.

    Args:
        task_name: of `TASKS`.
        train_images: the budget.
        test_images: to evaluate on.
        seed: of the heads.
        cache_dir: of the maps.
    """

    def __init__(self, task_name: str, train_images: Any, test_images: Any, seed: int, cache_dir: Path) -> None:
        self.task_name, self.seed = task_name, seed
        self.train_images, self.test_images = train_images, test_images
        self._maps, self._mirrored = load_maps(task_name, cache_dir)
        self.rows, self.test_rows = np.asarray(train_images["index"][:]), np.asarray(test_images["index"][:])
        self.labels, self.groups = np.asarray(train_images["label"][:]), train_images["group"][:]
        set_seed(seed)
        self.model = _stages_model(task_name).eval()
        self.good_id = self.model.config.defect_free_id
        self.defective = self.labels != self.good_id
        good = np.flatnonzero(~self.defective)
        fitted = np.random.default_rng(seed).permutation(good if len(good) else np.arange(len(self.labels)))
        fitted = self.rows[fitted[:FITTED_IMAGES]]
        fit_projection(self.model, (self.maps(part) for part in row_batches(fitted)), len(fitted), seed)
        self._default: dict[str, torch.Tensor] | None = None
        self.features = FrozenFeatures(
            self._pooled(self.rows), self._mirrored[self.rows], self._cells(self.rows), np.arange(len(self.rows))
        )

    def run(self, arm: str) -> dict[str, Any]:
        """Fit one arm of `ARMS` and return its metrics on the test images, and the seconds that fitting took."""
        started = time.perf_counter()
        fitted = ARMS[arm](self)
        predictions = fitted.call()
        metrics = DefectClassification(keep_in_memory=True).compute(
            predictions=predictions.probabilities, references=self.test_images["label"], defect_free_id=self.good_id
        )
        for name, maps in (("map", predictions.class_map), ("saliency", predictions.saliency)):
            rows, masks = self.test_masks
            if len(rows) and maps.shape[1:] != (1, 1):  # 1 x 1: the arm has no map
                cells = list(mask_to_grid(masks, maps.shape[1:]))
                metrics[f"{name}_cell_image_ap"] = image_average_precision(list(maps[rows]), cells)
        return metrics | {"seconds": fitted.fitted_at - started} | _marked(predictions, self)

    @cached_property
    def test_masks(self) -> tuple[np.ndarray, np.ndarray]:
        """The test images whose mask marks a defect, `(M,)`, and their masks `(M, H, W)` at the task's size."""
        size = TASKS[self.task_name].size
        masks = [mask_to_array(mask, size) for mask in self.test_images["mask"]]
        rows = np.asarray([row for row, mask in enumerate(masks) if mask is not None and mask.any()], dtype=int)
        return rows, np.asarray([masks[row] for row in rows])

    def maps(self, rows: np.ndarray) -> Maps:
        """Return the stages' maps of images by their row numbers in the task, `(B, C_i, h_i, w_i)` float32."""
        return tuple(torch.from_numpy(one[rows]).float() for one in self._maps)

    def _pooled(self, rows: np.ndarray) -> np.ndarray:
        return torch.cat([pool_maps(self.maps(part)) for part in row_batches(rows)]).numpy()

    def _cells(self, rows: np.ndarray) -> np.ndarray:
        stages = self.model.config.saliency_stages
        with torch.no_grad():
            parts = [self.model.saliency_head.cells(self.maps(part)[:stages]).half() for part in row_batches(rows)]
        return torch.cat(parts).numpy()

    def fit_default(self) -> None:
        """Fit the product's final heads, once."""
        if self._default is None:
            self.heads().fit_final()
            self._default = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(self._default)

    def heads(self, defect_cells: np.ndarray | None = None) -> FrozenHeads:
        """Return the product's heads on the training images."""
        return FrozenHeads(self.model, self.features, self.labels, self.groups, self.seed, defect_cells)


def _marked(predictions: Predictions, bench: FrozenBench) -> dict[str, float]:
    """Return the shares of good and defective test images with a cell of 0.5 or more in the heat map."""
    if bench.good_id is None:
        return {}
    good = np.asarray(bench.test_images["label"][:]) == bench.good_id
    marked = predictions.saliency.max(axis=(1, 2)) >= 0.5
    return {"marked_good": float(marked[good].mean()), "marked_defective": float(marked[~good].mean())}


class Fitted:
    """A fitted arm: when it was, and the function that predicts the test images."""

    def __init__(self, call: Callable[[], Predictions]) -> None:
        self.fitted_at, self.call = time.perf_counter(), call


def row_batches(rows: np.ndarray) -> list[np.ndarray]:
    """Return row numbers `(N,)` in batches."""
    return [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]


def predict_test(bench: FrozenBench, shuffled: bool = False) -> Predictions:
    """Predict the test images by the model's own heads; `shuffled`: each with the heat map of another image."""
    model, parts, maps_h = bench.model, [], []
    for part in row_batches(bench.test_rows):
        maps = bench.maps(part)
        with torch.no_grad():
            logits, saliency = model.classify(maps)
        targets = most_probable_defects(logits, bench.good_id)
        gradients = zip(*head_gradient(model, maps, targets), strict=True)
        class_map = fuse([grad_cam_plus_plus(features, gradient) for features, gradient in gradients])
        parts.append((logits, to_peak_one(class_map)))
        maps_h.append(saliency)
    logits, saliency = torch.cat([one for one, _ in parts]), torch.cat(maps_h)
    if shuffled:
        other = np.random.default_rng(bench.seed).permutation(len(saliency))
        score = top_cells(saliency, model.config.top_cells)
        logits = logits + (score[other] - score) * model.classifier.weight[:, -1] / model.config.temperature
        saliency = saliency[other]
    return Predictions(
        class_probabilities(logits.detach()).numpy(),
        torch.cat([one for _, one in parts]).numpy(),
        saliency[:, 0].detach().sigmoid().numpy(),
    )


def default(bench: FrozenBench) -> Fitted:
    """The default: regression and the distance from good cells, fused."""
    if bench.good_id is None:
        return own_saliency(bench)
    bench.fit_default()
    return Fitted(lambda: predict_test(bench))


def shuffled_maps(bench: FrozenBench) -> Fitted:
    """The default with another image's heat map: what remains if the map says nothing of its image."""
    bench.fit_default()
    return Fitted(lambda: predict_test(bench, shuffled=True))


def regression(bench: FrozenBench) -> Fitted:
    """The product's primary: pooled stages, no heat map; a blank map adds nothing to it."""
    bench.heads().fit_primary()
    return Fitted(lambda: predict_test(bench))


def true_masks(bench: FrozenBench) -> Fitted:
    """The default with the true masks of the training images."""
    grid = bench.features.cells.shape[2:]
    bench.heads(rivals.mask_cells(bench.train_images, grid)).fit_final()
    return Fitted(lambda: predict_test(bench))


def own_saliency(bench: FrozenBench) -> Fitted:
    """The paper's source of knowledge: H learns the Grad-CAM++ maps of the regression; fused as the default."""
    heads = bench.heads()
    heads.fit_primary()
    priors, thresholds = _own_priors(bench, np.arange(len(bench.rows)))
    if bench.good_id is None:
        heads.fit_saliency_to_priors(priors, thresholds)
        return Fitted(lambda: predict_test(bench))
    marked = torch.from_numpy(priors > thresholds[:, None, None])

    class HeadsOfMarkedCells(FrozenHeads):
        def _fit_saliency(self, rows: np.ndarray) -> CellScore:
            inside = torch.from_numpy(np.isin(self.features.cell_rows, rows))[:, None, None]
            return self._fit_marked(inside & marked, inside & ~marked)

    HeadsOfMarkedCells(bench.model, bench.features, bench.labels, bench.groups, bench.seed).fit_final()
    return Fitted(lambda: predict_test(bench))


def _own_priors(bench: FrozenBench, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Grad-CAM++ maps of the true class as stored priors `(M, h, w)`, and their thresholds `(M,)`."""
    parts = []
    for part in row_batches(rows):
        targets = torch.from_numpy(bench.labels[part])
        gradients = zip(*head_gradient(bench.model, bench.maps(bench.rows[part]), targets), strict=True)
        parts.append(fuse([grad_cam_plus_plus(features, gradient) for features, gradient in gradients]))
    priors = to_uint8(to_grid(torch.cat(parts), bench.features.cells.shape[2:]))
    if bench.good_id is not None:
        priors[~bench.defective[rows]] = 0
    return priors, np.asarray([otsu_threshold(one) for one in priors])


def chosen_regression(bench: FrozenBench) -> Fitted:
    """Logistic regression on pooled stages, its strength and stages chosen by cross-validation in the budget."""
    channels = bench.model.backbone.channels
    model, columns = rivals.choose_regression(bench.features.pooled, bench.labels, bench.groups, bench.seed, channels)
    probabilities = model.predict_proba(bench._pooled(bench.test_rows)[:, columns])
    return Fitted(lambda: rivals.without_maps(probabilities, bench))


def _scored(bench: FrozenBench, fit: Callable[[torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]) -> Fitted:
    """Return an arm that scores cells by what good images look like, and images by their highest 5 %."""
    good = torch.from_numpy(bench.features.cells[~bench.defective]).float()
    score = fit(good)

    def call() -> Predictions:
        maps = torch.cat(
            [score(torch.from_numpy(bench._cells(part)).float()) for part in row_batches(bench.test_rows)]
        )
        return rivals.from_scores(top_cells(maps[:, None], 0.05)[:, 0].numpy(), maps.numpy(), bench)

    return Fitted(call)


def nearest_neighbours(bench: FrozenBench) -> Fitted:
    """Distance from the nearest cells of good images, the good-parts prior itself."""

    def fit(good: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        groups = [group for group, one in zip(bench.groups, bench.defective, strict=True) if not one]
        parts = GoodParts.of(good, groups, bench.seed)
        return lambda cells: parts.distances(cells, [None] * len(cells))

    return _scored(bench, fit)


def mahalanobis(bench: FrozenBench) -> Fitted:
    """Mahalanobis distance from the cells of good images, in closed form."""
    return _scored(bench, rivals.mahalanobis)


def noise_head(bench: FrozenBench) -> Fitted:
    """Two layers that tell good cells from noisy ones, as in SimpleNet: no label of a defect."""

    def fit(good: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return rivals.noise_head(good.permute(0, 2, 3, 1).flatten(0, 2), bench.seed)

    return _scored(bench, fit)


def patchcore(bench: FrozenBench) -> Fitted:
    """PatchCore as published: raw cells, a greedy coreset of 10 %, the highest cell weighted by its neighbourhood."""
    stages = bench.model.config.saliency_stages
    good = bench.rows[~bench.defective]
    cells = torch.cat([raw_cells(bench.maps(part)[:stages]) for part in row_batches(good)])
    model = rivals.PatchCore(cells.permute(0, 2, 3, 1).flatten(0, 2), bench.seed)

    def call() -> Predictions:
        parts = [model.score(raw_cells(bench.maps(part)[:stages])) for part in row_batches(bench.test_rows)]
        scores, maps = (np.concatenate(of_parts) for of_parts in zip(*parts, strict=True))
        return rivals.from_scores(scores, maps, bench)

    return Fitted(call)


ARMS: dict[str, Callable[[FrozenBench], Fitted]] = {
    "default": default,
    "another image's map": shuffled_maps,
    "frozen regression": regression,
    "regression, chosen": chosen_regression,
    "own saliency": own_saliency,
    "default, true masks": true_masks,
    "nearest neighbours": nearest_neighbours,
    "mahalanobis": mahalanobis,
    "noise head alone": noise_head,
    "patchcore": patchcore,
}

__all__ = ["ARMS", "FrozenBench", "load_maps", "row_batches"]
