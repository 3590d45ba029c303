"""Heads on frozen features: a regression, a saliency head that knows good cells, and their sum."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from ..heads_kgl import KGLCellHead, top_cells
from ..modeling_kgl import KGLForImageClassification
from .cell_scores import CellScore, fit_cell_score, fit_marked_cells
from .frozen_features import FrozenFeatures


REGULARIZATION = 0.1  # inverse strength C of the regression; .01 to 1 rank alike
_USUAL_SCALE = 0.4  # of the regression's logits, which are overconfident by about this factor
MAX_CELLS = 20_000  # of each kind that the saliency head is fitted to
FOLDS = 4


@dataclass(frozen=True)
class Linear:
    """A linear classifier: `logits = features @ weight.T + bias`, weight `(K, P)`, bias `(K,)`."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return the logits `(N, K)` of features `(N, P)`."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Fusion:
    """
    How the regression's logits and the saliency head's score become calibrated logits.

    Attributes:
        scale: factor of the regression's logits.
        saliency_weight: of the score `top(H)` in the logits of the defect classes; 0 without a saliency head.
        bias: added to the logits of the defect classes.
    """

    scale: float
    saliency_weight: float
    bias: float


def fit_classifier(pooled: np.ndarray, labels: np.ndarray, num_labels: int) -> Linear:
    """
    Fit a multinomial logistic regression on standardised features, the scaling folded into its weights.

    Args:
        pooled: `(N, P)`.
        labels: `(N,)` in 0..K-1; classes without images get the bias of the rarest.
        num_labels: K.
    """
    scaler = StandardScaler().fit(pooled)
    model = LogisticRegression(C=REGULARIZATION, max_iter=1000).fit(scaler.transform(pooled), labels)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn has one row for two classes
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weight = np.zeros((num_labels, pooled.shape[1]))
    bias = np.full(num_labels, intercepts.min())
    weight[model.classes_] = coefficients / scaler.scale_
    bias[model.classes_] = intercepts - weight[model.classes_] @ scaler.mean_
    return Linear(weight, bias)


def cross_fitting_folds(labels: np.ndarray, groups: list[str], seed: int) -> list[np.ndarray]:
    """
    Return the held-out rows of each fold, groups kept whole, rows of classes with one group in none of them.

    At most `FOLDS` folds, and no more than the scarcest of the other classes has groups; none where no class has two.
    """
    groups = np.asarray(groups)
    counts = {label: len(set(groups[labels == label])) for label in np.unique(labels)}
    several = np.flatnonzero([counts[label] > 1 for label in labels])
    if len(several) == 0:
        return []
    folds = min(FOLDS, *(count for count in counts.values() if count > 1))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [several[held_out] for _, held_out in splitter.split(several, labels[several], groups[several])]


def defect_classes(num_labels: int, defect_free_id: int | None) -> np.ndarray:
    """Return 1 for each class with a defect, `(K,)`, and 0 for the others; all 0 where no class is defect-free."""
    if defect_free_id is None:
        return np.zeros(num_labels)
    return (np.arange(num_labels) != defect_free_id).astype(float)


def defect_margin(logits: np.ndarray, defect_free_id: int) -> np.ndarray:
    """Return the log-odds of a defect, `(N,)`, of logits `(N, K)`."""
    return logsumexp(np.delete(logits, defect_free_id, axis=1), axis=1) - logits[:, defect_free_id]


def within_class_deviation(values: np.ndarray, defective: np.ndarray) -> float:
    """Return the standard deviation of values `(N,)` within the two kinds of images, pooled."""
    kinds = [values[kind] for kind in (defective, ~defective) if kind.any()]
    return float(np.sqrt(sum(len(kind) * kind.var() for kind in kinds) / len(values))) + 1e-6


def fit_fusion(
    logits: np.ndarray, scores: np.ndarray | None, labels: np.ndarray, defect_free_id: int | None
) -> Fusion:
    """
    Fuse out-of-sample logits and saliency scores of the same images: equal spread within a class, then calibrated.

    The score is scaled to the spread of the regression's log-odds of a defect: with few images, equal weights rank
    better than learned ones. Scale and bias of the sum have the least cross-entropy (Platt 1999, for several classes),
    with a penalty that keeps a few images from asking for certainty.

    Args:
        logits: the regression's, `(N, K)`.
        scores: the saliency head's, `(N,)`; None without one.
        labels: `(N,)`.
        defect_free_id: index of the class without defects; None where there is none, and then no scores.
    """
    weight, defects = 0.0, defect_classes(logits.shape[1], defect_free_id)
    fused = logits.copy()
    if scores is not None:
        defective = labels != defect_free_id
        margins = defect_margin(logits, defect_free_id)
        weight = within_class_deviation(margins, defective) / within_class_deviation(scores, defective)
        fused += weight * scores[:, None] * defects

    def loss(parameters: np.ndarray) -> float:
        log_scale, bias = parameters
        calibrated = np.exp(log_scale) * fused + bias * defects
        entropy = logsumexp(calibrated, axis=1) - calibrated[np.arange(len(labels)), labels]
        return entropy.sum() + 0.5 * (log_scale - np.log(_USUAL_SCALE)) ** 2 + 0.5 * (bias / 3) ** 2

    log_scale, bias = minimize(loss, (np.log(_USUAL_SCALE), 0.0), method="L-BFGS-B").x
    scale = float(np.exp(log_scale))
    return Fusion(scale, scale * weight, float(bias))


@dataclass(frozen=True)
class HeatScale:
    """
    Scale of the saliency logits: `H = (h - offset) / spread`.

    A heat map of 0.5 is what one in ten good training images exceeds anywhere, out of sample, and the median good cell
    has .02. New good images exceed it more rarely: the heads of the folds know fewer good images than the final one.
    """

    offset: float
    spread: float

    @classmethod
    def of(cls, good_maps: torch.Tensor) -> HeatScale:
        """Compute the scale from maps of good images, `(N, h, w)`."""
        offset = float(torch.quantile(good_maps.flatten(1).amax(dim=1), 0.9))
        middle = float(good_maps.median())
        return cls(offset, max((offset - middle) / 4, 1e-6))


class FrozenHeads:
    """
    Fits the heads of a model with the head `stages` to frozen features.

    Args:
        model: with a fitted cell projection; its device trains the saliency head.
        features: of the training images.
        labels: of them, `(N,)`.
        groups: of them; groups are kept whole in cross-fitting.
        seed: of cross-fitting and the saliency head.
        defect_cells: `(M, h, w)` bool of the images with cells: cells that a mask marks; None without masks.
    """

    def __init__(
        self,
        model: KGLForImageClassification,
        features: FrozenFeatures,
        labels: np.ndarray,
        groups: list[str],
        seed: int,
        defect_cells: np.ndarray | None = None,
    ) -> None:
        self.model, self.features, self.labels, self.seed = model, features, labels, seed
        self.defect_free_id = model.config.defect_free_id
        self.folds = cross_fitting_folds(labels, groups, seed)
        self.cells = torch.from_numpy(features.cells)
        self.defect_cells = None if defect_cells is None else torch.from_numpy(defect_cells)

    @property
    def defective(self) -> np.ndarray:
        """Which images are defective, `(N,)` bool."""
        return self.labels != self.defect_free_id

    def fit_primary(self) -> dict[str, float]:
        """Fit the classifier alone, calibrated out of sample, and return its fusion."""
        held_out, logits = self._out_of_sample_logits()
        fusion = self._fusion(held_out, logits, None)
        self._set_classifier(fusion)
        return asdict(fusion)

    def fit_final(self) -> dict[str, float]:
        """Fit the saliency head to good cells and the classifier with it, and return fusion and heat scale."""
        held_out, logits = self._out_of_sample_logits()
        with_cells = np.isin(held_out, self.features.cell_rows)
        held_out, logits = held_out[with_cells], logits[with_cells]
        maps = self._out_of_sample_maps(held_out)
        heat = self._heat_scale(maps[torch.from_numpy(~self.defective[held_out])])
        scores = top_cells((maps[:, None] - heat.offset) / heat.spread, self.model.config.top_cells)[:, 0].numpy()
        fusion = self._fusion(held_out, logits, scores)
        self._set_saliency(self._fit_saliency(self.features.cell_rows), heat)
        self._set_classifier(fusion)
        return asdict(fusion) | asdict(heat)

    def fit_saliency_to_priors(self, priors: np.ndarray, thresholds: np.ndarray) -> None:
        """
        Fit the saliency head to priors: cells above the threshold against the others.

        Where no class is defect-free, there are no good cells to learn from.

        Args:
            priors: of the images with cells, `(M, h, w)` uint8.
            thresholds: of them, `(M,)`.
        """
        marked = torch.from_numpy(priors > thresholds[:, None, None])
        if marked.any() and not marked.all():
            self._set_saliency(self._fit_marked(marked, ~marked), HeatScale(0.0, 1.0))

    def _out_of_sample_logits(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that some fold holds out, in order, and the regression's logits without that fold."""
        logits = np.full((len(self.labels), self.model.config.num_labels), np.nan)
        for held_out in self.folds:
            rest = np.setdiff1d(np.arange(len(self.labels)), held_out)
            logits[held_out] = self._regression(rest)(self.features.pooled[held_out])
        rows = np.flatnonzero(~np.isnan(logits[:, 0]))
        return rows, logits[rows]

    def _regression(self, rows: np.ndarray) -> Linear:
        both = np.concatenate([self.features.pooled[rows], self.features.flipped[rows]])
        return fit_classifier(both, np.tile(self.labels[rows], 2), self.model.config.num_labels)

    def _out_of_sample_maps(self, rows: np.ndarray) -> torch.Tensor:
        """Return the saliency logits `(len(rows), h, w)` of heads that were fitted without the rows' folds."""
        maps = torch.full((len(self.labels), *self.cells.shape[2:]), torch.nan)
        for held_out in self.folds:
            scored = np.intersect1d(held_out, rows)
            score = self._fit_saliency(np.setdiff1d(self.features.cell_rows, held_out))
            maps[scored] = self._score(score, scored)
        return maps[rows]

    def _heat_scale(self, good_maps: torch.Tensor) -> HeatScale:
        """Return the scale from out-of-sample maps of good images; from their own where none can be held out."""
        if len(good_maps) == 0:
            rows = self.features.cell_rows[~self.defective[self.features.cell_rows]]
            good_maps = self._score(self._fit_saliency(rows), rows)
        return HeatScale.of(good_maps)

    def _score(self, score: CellScore, rows: np.ndarray) -> torch.Tensor:
        batches = self.cells[np.searchsorted(self.features.cell_rows, rows)].split(64)
        return torch.cat([score(one.float().to(self.model.device)).cpu() for one in batches])

    def _fit_saliency(self, rows: np.ndarray) -> CellScore:
        """Fit the saliency head to good images of these rows and, where masks mark any, to defective cells."""
        inside = torch.from_numpy(np.isin(self.features.cell_rows, rows))[:, None, None]
        good = torch.from_numpy(~self.defective[self.features.cell_rows])[:, None, None]
        marked = None if self.defect_cells is None else inside & self.defect_cells
        return self._fit_score((inside & good).expand(-1, *self.cells.shape[2:]), marked)

    def _fit_score(self, good: torch.Tensor, defective: torch.Tensor | None) -> CellScore:
        """Fit the score to a sample of the cells that two masks `(M, h, w)` mark."""
        generator = np.random.default_rng(self.seed)
        cells = self._sample(good, generator)
        known = None if defective is None or not defective.any() else self._sample(defective, generator)
        return fit_cell_score(cells, known, self.model.config.memory_size, self.seed)

    def _fit_marked(self, marked: torch.Tensor, others: torch.Tensor) -> CellScore:
        """Fit the score to samples of cells that a prior marks and of others, masks `(M, h, w)`."""
        generator = np.random.default_rng(self.seed)
        samples = [self._sample(mask, generator) for mask in (marked, others)]
        return fit_marked_cells(*samples, self.model.config.memory_size)

    def _sample(self, mask: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """Return at most `MAX_CELLS` of the cells that a mask `(M, h, w)` marks, `(n, D)` float32."""
        at = torch.from_numpy(generator.permutation(np.flatnonzero(mask.numpy()))[:MAX_CELLS])
        image, cell = at // mask[0].numel(), at % mask[0].numel()
        flat = self.cells.permute(0, 2, 3, 1)
        return flat[image, cell // mask.shape[2], cell % mask.shape[2]].float().to(self.model.device)

    def _fusion(self, rows: np.ndarray, logits: np.ndarray, scores: np.ndarray | None) -> Fusion:
        if len(rows) == 0:
            return Fusion(_USUAL_SCALE, 0.0, 0.0)
        return fit_fusion(logits, scores, self.labels[rows], self.defect_free_id)

    @torch.no_grad()
    def _set_classifier(self, fusion: Fusion) -> None:
        linear = self._regression(np.arange(len(self.labels)))
        weight, bias = fusion.scale * linear.weight, fusion.scale * linear.bias
        defects = defect_classes(len(bias), self.defect_free_id)
        bias = bias + fusion.bias * defects
        weight = np.concatenate([weight, (fusion.saliency_weight * defects)[:, None]], axis=1)
        self.model.classifier.weight.copy_(torch.from_numpy(weight))
        self.model.classifier.bias.copy_(torch.from_numpy(bias))

    @torch.no_grad()
    def _set_saliency(self, score: CellScore, heat: HeatScale) -> None:
        head: KGLCellHead = self.model.saliency_head
        head.memory.weight.copy_(score.memory[:, :, None, None])
        head.memory.bias.copy_(-score.memory.square().sum(dim=1) / 2)
        head.output.weight.copy_(score.weight[None, :, None, None] / heat.spread)
        head.output.bias.fill_((score.bias - heat.offset) / heat.spread)


__all__ = ["FrozenHeads", "Fusion", "HeatScale", "Linear", "fit_classifier", "fit_fusion"]
