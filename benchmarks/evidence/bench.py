"""Train and evaluate one arm on a task with a budget of images and a seed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, set_seed

from kgl.benchmarks.evidence.frozen import FrozenBench, predict_test
from kgl.benchmarks.evidence.plan import TASKS, Arm
from kgl.benchmarks.evidence.priors import add_arm_priors, shuffle_within_classes
from kgl.benchmarks.evidence.task_data import (
    defect_free_class,
    image_processor,
    load_features,
    load_images,
    new_model,
)
from kgl.data.splits import select_few_labels
from kgl.evaluation.maps import evaluate_maps
from kgl.evaluation.predictions import Predictions, most_probable_defects, predict_batches
from kgl.evaluation.results import evaluate_predictions
from kgl.modeling_kgl import KGLForImageClassification
from kgl.saliency.compute import compute_saliency
from kgl.saliency.maps import to_peak_one
from kgl.training.augmentation import PairedAugmentation
from kgl.training.feature_cache import FrozenFeatureCollator, bypass_frozen_stages
from kgl.training.trainer import ClassificationTrainer, KnowledgeGuidedTrainer
from kgl.training.training_args import KGLTrainingArguments


RECIPE = {"learning_rate": 1e-3, "weight_decay": 0.01, "lr_scheduler_type": "cosine", "warmup_steps": 0.1}
_EVAL_BATCH = 32


class Bench:
    """One task, budget and seed: its split, its primary, and every arm on them."""

    def __init__(self, task_name: str, budget: int, seed: int, search: bool, bf16: bool, cache_dir: Path) -> None:
        self.task_name, self.task, self.budget, self.seed, self.bf16 = task_name, TASKS[task_name], budget, seed, bf16
        self._cache_dir = cache_dir
        images = load_images(task_name)
        fold = np.asarray(images["fold"][:])
        test = fold == (0 if self.task.fixed_test_fold else seed % self.task.folds)
        validation = (fold == 1) & search
        self.test_images = images.select(np.flatnonzero(validation if search else test))
        pool = images.select(np.flatnonzero(~test & ~validation))
        good = defect_free_class(task_name)
        self.train_images = select_few_labels(pool, budget, 4 * budget, good, seed)
        labels, names = self.train_images["label"][:], self.train_images.features["label"].names
        largest = max(labels.count(label) for label, name in enumerate(names) if name != good)
        if largest < budget:
            raise ValueError(f"--budgets {budget}: no class of {task_name} has more than {largest} training images.")
        self._trained_primary: tuple[KGLForImageClassification, tuple[int, float]] | None = None
        self._trainings: list[tuple[int, float]] = []  # steps and seconds of each training of the arm

    @cached_property
    def features(self) -> np.ndarray:
        """Output of the frozen stages, which fine-tuned arms start from."""
        return load_features(self.task_name, self._cache_dir)

    @cached_property
    def frozen(self) -> FrozenBench:
        """The arms that train no stage."""
        return FrozenBench(self.task_name, self.train_images, self.test_images, self.seed, self._cache_dir)

    def run(self, arm: Arm) -> dict[str, float]:
        """
        Train and evaluate one arm.

        Returns:
            Metrics on the test images; `steps` (and `phases`) of all its trainings, the primary's included; `seconds`
            of the last one.

        Raises:
            CannotShuffleError: the arm shuffles priors and the choice of images does not allow it.
        """
        if arm.frozen is not None:
            return self.frozen.run(arm.frozen)
        if arm.prior == "shuffled":  # fails before anything is trained
            shuffle_within_classes(np.asarray(self.train_images["label"]), np.asarray(self.train_images["group"]))
        self._trainings = []
        model = self._fit(arm)
        predictions = self._predict(model, self.test_images)
        if arm.with_default:
            self.frozen.fit_default()
            default = predict_test(self.frozen)
            mean = (predictions.probabilities + default.probabilities) / 2
            predictions = Predictions(mean, predictions.class_map, default.saliency)
        metrics = evaluate_predictions(predictions, self.test_images, model.config.defect_free_id, self.task.size)
        grad_cam = self._grad_cam_maps(model, predictions)
        metrics |= evaluate_maps({"gradcam": grad_cam}, self.test_images, self.task.size)
        steps = sum(steps for steps, _ in self._trainings)
        return metrics | {"phases": steps / self.task.steps, "steps": steps, "seconds": self._trainings[-1][1]}

    def _fit(self, arm: Arm) -> KGLForImageClassification:
        if arm in (Arm(), Arm(with_default=True)):  # plain training is the primary of the same seed
            return self._primary()
        rows = self.train_images if arm.prior is None else self._with_priors(arm)
        set_seed(self.seed)
        model = new_model(self.task_name, {})
        self._train(ClassificationTrainer if arm.prior is None else KnowledgeGuidedTrainer, model, rows, arm)
        return model

    def _primary(self) -> KGLForImageClassification:
        """Return the classifier on labels alone, trained once."""
        if self._trained_primary is None:
            set_seed(self.seed)
            model = new_model(self.task_name, {})
            self._train(ClassificationTrainer, model, self.train_images, Arm())
            self._trained_primary = model, self._trainings[-1]
        else:
            self._trainings.append(self._trained_primary[1])
        return self._trained_primary[0]

    def _train(
        self,
        trainer_class: type[ClassificationTrainer],
        model: KGLForImageClassification,
        rows: Dataset,
        arm: Arm,
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            args = KGLTrainingArguments(
                output_dir=folder, max_steps=round(self.task.steps * arm.length), report_to="none", seed=self.seed,
                per_device_train_batch_size=self.task.batch_size, save_strategy="no", logging_strategy="no",
                disable_tqdm=True, bf16=self.bf16, use_cpu=not torch.cuda.is_available(), **RECIPE, **arm.training,
            )  # fmt: skip
            collator = FrozenFeatureCollator(self.features, self.task.size, PairedAugmentation())
            trainer = trainer_class(
                model=model, args=args, train_dataset=_training_columns(rows), data_collator=collator
            )
            trainer.remove_callback(PrinterCallback)
            started = time.perf_counter()
            with bypass_frozen_stages(model, self.task.freeze_stages):
                trainer.train()
            self._trainings.append((trainer.state.global_step, time.perf_counter() - started))
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # evaluated in full precision

    def _with_priors(self, arm: Arm) -> Dataset:
        """Return the training images with the arm's priors."""
        if arm.needs_primary:
            model = self._primary()
        else:  # any classifier of the same grid
            set_seed(self.seed)
            model = new_model(self.task_name, {})
        return add_arm_priors(arm, self.train_images, model, image_processor(self.task))

    def _grad_cam_maps(self, model: KGLForImageClassification, predictions: Predictions) -> np.ndarray:
        """Return Grad-CAM++ maps, the method of the priors, of the likeliest defect class, `(N, h, w)` of peak 1."""
        defects = most_probable_defects(torch.from_numpy(predictions.probabilities), model.config.defect_free_id)
        batches = zip(self._batches(self.test_images), defects.split(_EVAL_BATCH), strict=True)
        with bypass_frozen_stages(model, self.task.freeze_stages):
            maps = [
                compute_saliency(model, features.to(model.device), targets.to(model.device), "gradcam++")
                for features, targets in batches
            ]
        return to_peak_one(torch.cat(maps)).cpu().numpy()

    def _batches(self, rows: Dataset) -> Iterator[torch.Tensor]:
        indices = np.asarray(rows["index"][:])
        for start in range(0, len(indices), _EVAL_BATCH):
            yield torch.from_numpy(self.features[indices[start : start + _EVAL_BATCH], 0])

    def _predict(self, model: KGLForImageClassification, rows: Dataset) -> Predictions:
        with bypass_frozen_stages(model, self.task.freeze_stages):
            return predict_batches(model, self._batches(rows))


def _training_columns(rows: Dataset) -> Dataset:
    """Drop the images, which the Trainer would decode for nothing."""
    columns = ("index", "label", "digest", "saliency_prior", "prior_weight", "prior_threshold")
    return rows.select_columns([name for name in columns if name in rows.column_names])
