"""
Does guidance help, and by what? Arms x label budgets x seeds x datasets, one JSON line a run.

    python benchmarks/evidence.py --tasks magnetic_tile_long neu_det_long --budgets 8 16 --bf16 [--arms plain guided]
    python benchmarks/evidence.py --tasks magnetic_tile --arms ... --search --bf16    # judged on validation images

Runs that the file of results has already (in `benchmarks/results`: `evidence.jsonl`, with `--search` `search.jsonl`)
are not done again; `--part 0/2` does every other one, for a second process. A *budget* is so many images a defect
class and four times as many defect-free ones. A seed decides choice, weights and batches, and on tasks that nothing is
searched on the test fold too, so arms of one seed are pairs.
All of them start from the same backbone, whose stem and first two stages are frozen and computed once (the cache
folder); see `TASKS` for sizes and steps.

Groups are whole on one side. The magnetic tiles have one test fold for all seeds, because `--search` is judged on
another one, and that trains nothing then: what is searched there never sees an image that is tested on. A test fold
is looked at once a run, at its end. `plain, early-stopped` holds out a quarter of its *budget* to stop by.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, fields
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, concatenate_datasets, disable_progress_bars
from evidence_plan import ARMS, SEARCHED, SHARED, TASKS, Arm, Task
from measure import hardware, lines_of
from sklearn.model_selection import StratifiedGroupKFold
from torch.nn import functional as F
from transformers import BaseImageProcessor, PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.configuration_kgl import KGLConfig
from kgl.data.arguments import DataArguments
from kgl.data.images import without_decoding
from kgl.data.loading import LoadedDataset, read_images
from kgl.data.schema import dataset_fingerprint
from kgl.data.splits import group_folds, select_few_labels
from kgl.evaluation.maps import evaluate_maps
from kgl.evaluation.predictions import Predictions, likeliest_defects, predict_batches
from kgl.evaluation.results import evaluate_predictions
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.saliency_priors import add_saliency_priors
from kgl.knowledge.thresholds import add_prior_thresholds
from kgl.modeling_kgl import KGLForImageClassification
from kgl.saliency.compute import compute_saliency
from kgl.saliency.maps import to_peak_one
from kgl.training.augmentation import PairedAugmentation
from kgl.training.feature_cache import FrozenFeatureCollator, bypass_frozen_stages, cache_frozen_features
from kgl.training.trainer import ClassificationTrainer, KnowledgeGuidedTrainer
from kgl.training.training_args import KGLTrainingArguments


RECIPE = {"learning_rate": 1e-3, "weight_decay": 0.01, "lr_scheduler_type": "cosine", "warmup_steps": 0.1}
VIEWS = 8
_BATCH = 32  # in judging
_SHOWN = ("ap", "accuracy", "map_ap", "gradcam_ap", "saliency_ap", "seconds")


class _Distilled(ClassificationTrainer):
    """Half the labels' cross-entropy, half the agreement with a teacher at temperature 2 (Hinton et al. 2015)."""

    teacher: KGLForImageClassification

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        with torch.no_grad():
            wanted = (self.teacher(inputs["pixel_values"]).logits / 2).log_softmax(dim=1)
        said = (outputs.logits / 2).log_softmax(dim=1)
        loss = 0.5 * loss + 0.5 * 4 * F.kl_div(said, wanted, reduction="batchmean", log_target=True)
        return (loss, outputs) if return_outputs else loss


class _KeepBest(TrainerCallback):
    """Judges ten times on images held out of the budget; the best weights are put back at the end."""

    def __init__(self, judge: Any) -> None:
        self.test_metrics, self._best = judge, (-float("inf"), {})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % max(1, state.max_steps // 10) == 0:
            score = self.test_metrics()
            if score > self._best[0] or not self._best[1]:
                self._best = (score, copy.deepcopy(model.state_dict()))

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.load_state_dict(self._best[1])


class _Average(TrainerCallback):
    """Puts the running average of the weights in their place at the end (0.98 a step)."""

    def __init__(self) -> None:
        self._average: dict[str, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for name, value in model.state_dict().items():
            if name in self._average and value.is_floating_point():
                self._average[name].lerp_(value, 0.02)
            else:
                self._average[name] = value.clone()

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.load_state_dict(self._average)


@cache
def _loaded(task_name: str) -> LoadedDataset:
    return read_images(DataArguments(**TASKS[task_name].data))


@cache
def images_of(task_name: str) -> Dataset:
    """All images of a task with masks, numbered by `index`, and which `fold` each is in."""
    task = TASKS[task_name]
    images = _loaded(task_name).splits["train"]
    fold_of = np.empty(len(images), dtype=int)
    for fold, (_, held_out) in enumerate(group_folds(images, task.folds, 0, "folds")):
        fold_of[held_out] = fold
    images = images.add_column("fold", fold_of.tolist())
    if task.defect_or_not:  # only now: the folds are those of all classes, so that what was searched on stays apart
        names, good = images.features["label"].names, _good(task_name)
        labels = [int(names[label] != good) for label in images["label"]]
        images = images.remove_columns("label").add_column("label", labels)
        images = images.cast_column("label", ClassLabel(names=[good, "defect"]))
    return images.add_column("index", list(range(len(images))))


def _good(task_name: str) -> str | None:
    return _loaded(task_name).defect_free_label


@cache
def features_of(task_name: str, cache_dir: Path) -> np.ndarray:
    """What the frozen stages give for all images in all views, `(N, views, C, h, w)`."""
    task = TASKS[task_name]
    cache_dir.mkdir(parents=True, exist_ok=True)
    set_seed(0)
    model, images = new_model(task_name, {}), images_of(task_name)
    processor, augmentation = processor_of(task), PairedAugmentation()
    settings = (images["digest"][:], processor.to_dict(), augmentation, task.freeze_stages, VIEWS)
    known_by = hashlib.sha1(repr(settings).encode())
    for name, tensor in model.backbone.state_dict().items():
        known_by.update(name.encode() + tensor.numpy().tobytes())
    path = cache_dir / f"{task.data['dataset']}_{known_by.hexdigest()[:16]}.npy"
    return cache_frozen_features(path, images, model, processor, task.freeze_stages, VIEWS, augmentation)


def processor_of(task: Task) -> BaseImageProcessor:
    """Resizing and ImageNet's normalisation, which is the backbone's."""
    size = {"height": task.size[0], "width": task.size[1]}
    return ViTImageProcessorPil(size=size, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD)


def new_model(task_name: str, config: dict[str, Any]) -> KGLForImageClassification:
    """A classifier with new heads."""
    task = TASKS[task_name]
    names = images_of(task_name).features["label"].names
    config = {"id2label": dict(enumerate(names)), "defect_free_label": _good(task_name), **config}
    if task.backbone is not None:
        return KGLForImageClassification(KGLConfig(backbone_config=task.backbone, **config))
    backbone = str(SHARED / "models/resnet-18")
    return KGLForImageClassification.from_backbone(backbone, **({"out_features": ["stage3"]} | config))


class CannotShuffle(ValueError):
    """So few images, so many of them alike, that another one's prior is one's own."""


class Bench:
    """One task, budget and seed: its split, its primary, and every arm on them."""

    def __init__(self, task_name: str, budget: int, seed: int, search: bool, bf16: bool, cache_dir: Path) -> None:
        self.name, self.task, self.budget, self.seed, self.bf16 = task_name, TASKS[task_name], budget, seed, bf16
        self.features = features_of(task_name, cache_dir)
        images = images_of(task_name)
        fold = np.asarray(images["fold"][:])
        test = fold == (0 if self.task.searched else seed % self.task.folds)
        validation = (fold == 1) & search
        self.judged = images.select(np.flatnonzero(validation if search else test))
        pool = images.select(np.flatnonzero(~test & ~validation))
        self.train = select_few_labels(pool, budget, 4 * budget, _good(self.name), seed)
        labels, names = self.train["label"][:], self.train.features["label"].names
        most = max(labels.count(label) for label, name in enumerate(names) if name != _good(self.name))
        if most < budget:
            raise ValueError(f"--budgets {budget}: no class of {task_name} has more than {most} to train on.")
        self._primaries: dict[str, tuple[KGLForImageClassification, tuple[int, float]]] = {}
        self._spent: list[tuple[int, float]] = []  # steps and seconds of each training that the arm took

    def run(self, arm: Arm) -> dict[str, float]:
        """Train and judge one arm; `steps` (and `phases`) are all it took, its primaries' too, `seconds` its last."""
        if arm.prior == "shuffled":
            self._other_images()  # some choices have none: known before anything is trained
        model, self._spent = None, []
        for _ in range(arm.rounds):
            primary = model
            if primary is None and arm.needs_primary:
                primary = self._primary("all", self.train, arm)
            model = self._fit(arm, primary)
        predictions = self._predict(model, self.judged)
        results = evaluate_predictions(predictions, self.judged, model.config.defect_free_id, self.task.size)
        results |= evaluate_maps({"gradcam": self._grad_cam_maps(model, predictions)}, self.judged, self.task.size)
        steps = sum(steps for steps, _ in self._spent)
        return results | {"phases": steps / self.task.steps, "steps": steps, "seconds": self._spent[-1][1]}

    def _fit(self, arm: Arm, primary: KGLForImageClassification | None) -> KGLForImageClassification:
        if arm == Arm(model=arm.model):  # plain is what the primary is, from the same seed
            return self._primary("all", self.train, arm)
        set_seed(self.seed)
        model = new_model(self.name, arm.model)
        if arm.prior is not None:
            self._optimise(KnowledgeGuidedTrainer, model, self._with_priors(arm, primary), arm)
        elif arm.distilled:
            self._optimise(_Distilled, model, self._unmarked(self.train), arm, teacher=primary)
        elif arm.early_stopped:
            # A quarter of each class as far as it goes: with 4 a class some may have none to stop by.
            splitter = StratifiedGroupKFold(4, shuffle=True, random_state=self.seed)
            labels = np.asarray(self.train["label"])
            kept, held_out = next(splitter.split(labels, labels, self.train["group"]))
            learning, stopping = self.train.select(kept), self.train.select(held_out)

            def judge() -> float:
                probabilities = self._predict(model, stopping, bypassed=True).probabilities
                truth = torch.tensor(stopping["label"])
                return -float(F.nll_loss(torch.from_numpy(probabilities).log(), truth))

            self._optimise(ClassificationTrainer, model, self._unmarked(learning), arm, [_KeepBest(judge)])
        else:
            self._optimise(ClassificationTrainer, model, self._unmarked(self.train), arm)
        return model

    def _primary(self, which: str, rows: Dataset, arm: Arm) -> KGLForImageClassification:
        key = f"{which} {arm.model} {arm.averaged} {arm.primary_length}"
        if key not in self._primaries:
            set_seed(self.seed)
            model = new_model(self.name, arm.model)
            callbacks = [_Average()] if arm.averaged else []
            training = Arm(length=arm.primary_length)
            self._optimise(ClassificationTrainer, model, self._unmarked(rows), training, callbacks)
            self._primaries[key] = model, self._spent[-1]
        else:
            self._spent.append(self._primaries[key][1])
        return self._primaries[key][0]

    def _optimise(
        self,
        kind: type[ClassificationTrainer],
        model: KGLForImageClassification,
        rows: Dataset,
        arm: Arm,
        callbacks: list[TrainerCallback] | None = None,
        teacher: KGLForImageClassification | None = None,
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            args = KGLTrainingArguments(
                output_dir=folder, max_steps=round(self.task.steps * arm.length), report_to="none", seed=self.seed,
                per_device_train_batch_size=self.task.batch_size, save_strategy="no", logging_strategy="no",
                disable_tqdm=True, bf16=self.bf16, use_cpu=not torch.cuda.is_available(), **RECIPE, **arm.training,
            )  # fmt: skip
            collator = FrozenFeatureCollator(self.features, self.task.size, PairedAugmentation())
            trainer = kind(model=model, args=args, train_dataset=rows, data_collator=collator, callbacks=callbacks)
            trainer.remove_callback(PrinterCallback)
            started = time.perf_counter()
            with ExitStack() as stack:
                stack.enter_context(bypass_frozen_stages(model, self.task.freeze_stages))
                if arm.detached:
                    hook = model.saliency_head.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(),))
                    stack.callback(hook.remove)
                if teacher is not None:
                    trainer.teacher = teacher.eval()
                    stack.enter_context(bypass_frozen_stages(teacher, self.task.freeze_stages))
                trainer.train()
            self._spent.append((trainer.state.global_step, time.perf_counter() - started))
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # judged in full precision

    def _with_priors(self, arm: Arm, primary: KGLForImageClassification | None) -> Dataset:
        """The training images with the arm's priors."""
        making = PriorArguments(**arm.making)
        rows, said = self._with_known_masks(arm)
        if arm.prior == "cross_fitted":
            return self._unmarked(self._cross_fitted(rows, arm, making))
        if primary is None:
            set_seed(self.seed)
            primary = new_model(self.name, arm.model)  # for blank maps and masks any of that grid will do
        guided = add_saliency_priors(rows, primary.eval(), processor_of(self.task), args=making)
        stored, weights = np.asarray(guided["saliency_prior"], dtype=np.uint8), np.asarray(guided["prior_weight"])
        if arm.prior == "masks":
            weights = weights * said
        elif arm.prior in ("blank", "nothing"):
            stored, weights = np.zeros_like(stored), np.full(len(weights), float(arm.prior == "blank"))
        elif arm.prior == "shuffled":
            other = self._other_images()
            stored, weights = stored[other], weights[other]
        return self._unmarked(_replaced(guided, stored, weights.tolist()))

    def _with_known_masks(self, arm: Arm) -> tuple[Dataset, np.ndarray]:
        """The training images with the masks the arm knows, and whether they then say where, `(N,)` of 0 and 1."""
        names, good = self.train.features["label"].names, _good(self.name)
        by_class, labels = [[] for _ in names], self.train["label"][:]
        for at in np.random.default_rng(self.seed).permutation(len(self.train)).tolist():
            by_class[labels[at]].append(at)
        turns = [
            at
            for turn in zip_longest(*(rows for name, rows in zip(names, by_class, strict=True) if name != good))
            for at in turn
            if at is not None
        ]  # the classes take turns
        known = set(turns if arm.prior == "masks" else turns[: arm.masks])
        masks = [mask if at in known else None for at, mask in enumerate(without_decoding(self.train)["mask"])]
        rows = self.train.remove_columns("mask").add_column("mask", masks, feature=self.train.features["mask"])
        # An image with a defect and no mask says nothing of where.
        said = [names[label] == good or mask is not None for label, mask in zip(labels, masks, strict=True)]
        return rows, np.array(said, dtype=float)

    def _cross_fitted(self, rows: Dataset, arm: Arm, making: PriorArguments) -> Dataset:
        """Each half's priors by a primary that has learned from the other half."""
        parts, order = [], []
        for fold, (rest, held) in enumerate(group_folds(self.train, 2, self.seed, "cross-fitting")):
            model = self._primary(f"fold {fold}", self.train.select(rest), arm)
            parts.append(add_saliency_priors(rows.select(held), model, processor_of(self.task), args=making))
            order.append(held)
        return concatenate_datasets(parts).select(np.argsort(np.concatenate(order)))

    def _other_images(self) -> np.ndarray:
        """For each training image another one of its class that does not show the same."""
        return images_of_other_groups(np.asarray(self.train["label"][:]), np.asarray(self.train["group"][:]))

    def _unmarked(self, rows: Dataset) -> Dataset:
        wanted = ("index", "label", "digest", "saliency_prior", "prior_threshold", "prior_weight")
        return rows.select_columns([name for name in wanted if name in rows.column_names])

    def _grad_cam_maps(self, model: KGLForImageClassification, predictions: Predictions) -> np.ndarray:
        """Grad-CAM++, which priors are made by, of the likeliest defect class; `(N, h, w)` of peak 1."""
        defects = likeliest_defects(torch.from_numpy(predictions.probabilities), model.config.defect_free_id)
        with bypass_frozen_stages(model, self.task.freeze_stages):
            maps = [
                compute_saliency(model, features.to(model.device), targets.to(model.device), "gradcam++")
                for features, targets in zip(self._batches(self.judged), defects.split(_BATCH), strict=True)
            ]
        return to_peak_one(torch.cat(maps)).cpu().numpy()

    def _batches(self, rows: Dataset) -> Iterator[torch.Tensor]:
        indices = np.asarray(rows["index"][:])
        for start in range(0, len(indices), _BATCH):
            yield torch.from_numpy(self.features[indices[start : start + _BATCH], 0])

    def _predict(self, model: KGLForImageClassification, rows: Dataset, bypassed: bool = False) -> Predictions:
        if bypassed:
            return predict_batches(model, self._batches(rows))
        with bypass_frozen_stages(model, self.task.freeze_stages):
            return predict_batches(model, self._batches(rows))


def images_of_other_groups(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each image another one of its class and not of its group, every one of them once; or [`CannotShuffle`]."""
    other = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        of_class = of_class[np.argsort(groups[of_class], kind="stable")]
        largest = np.unique(groups[of_class], return_counts=True)[1].max()
        other[of_class] = np.roll(of_class, largest)  # past the end of any image's own group
    if (groups[other] == groups).any():
        raise CannotShuffle("More than half of a class shows the same: its priors cannot be shuffled.")
    return other


def _replaced(rows: Dataset, priors: np.ndarray, weights: list[float]) -> Dataset:
    features = Features({name: rows.features[name] for name in ("saliency_prior", "prior_weight")})
    columns = {"saliency_prior": list(priors), "prior_weight": weights}
    others = rows.remove_columns(["saliency_prior", "prior_weight"])
    return add_prior_thresholds(concatenate_datasets([others, Dataset.from_dict(columns, features=features)], axis=1))


@cache
def data_of(task_name: str) -> str:
    """By what a task's images, classes, masks, groups and folds are known: a line of other data is no run of it."""
    images = images_of(task_name)
    groups = images["group"][:]
    same = [groups.index(group) for group in groups]  # which are one, whatever they are called
    identity = [dataset_fingerprint(images), same, images["fold"][:]]
    return hashlib.sha1(repr(identity).encode()).hexdigest()[:16]


def _identity(arm: str, task: str, budget: int, seed: int, search: bool, bf16: bool) -> dict[str, Any]:
    """What decides the figures of a run."""
    settings = {"task": asdict(TASKS[task]), "settings": asdict((ARMS | SEARCHED)[arm])}
    # Defaults too: they may be others one day.
    settings["settings"]["making"] = asdict(PriorArguments(**settings["settings"]["making"]))
    own = {one.name for one in fields(KGLTrainingArguments)} - {one.name for one in fields(TrainingArguments)}
    training = KGLTrainingArguments("unused", **settings["settings"]["training"])
    if settings["settings"]["prior"] is None:
        own = {name for name in own if not name.startswith("kg_")}  # the default may change, and guides nothing here
    settings["settings"]["training"] = {name: vars(training)[name] for name in sorted(own)}
    settings["task"]["data"].pop("data_dir", None)  # where this machine has it
    settings["task"]["known_by"] = data_of(task)
    names = {"arm": arm, "dataset": task, "budget": budget, "seed": seed, "split": "validation" if search else "test"}
    recipe = {"precision": "bf16" if bf16 else "float32", "recipe": RECIPE | {"views": VIEWS}}
    return json.loads(json.dumps(names | settings | recipe))


def _done(output: Path) -> dict[tuple[str, str, int, int], dict[str, Any]]:
    """What is there of each run: arm, dataset, budget and seed to its identity."""
    if not output.exists():
        return {}
    parts = ("arm", "dataset", "budget", "seed", "split", "task", "settings", "precision", "recipe")
    return {tuple(line[part] for part in parts[:4]): {part: line[part] for part in parts} for line in lines_of(output)}


def _part(text: str) -> tuple[int, int]:
    """`I/N`."""
    part, parts = map(int, text.split("/"))
    if not 0 <= part < parts:
        raise ValueError(text)
    return part, parts


def main() -> None:
    """Do the runs that are missing, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), required=True)
    parser.add_argument("--budgets", type=int, nargs="+", default=[16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *SEARCHED], default=list(ARMS), metavar="ARM")
    parser.add_argument("--search", action="store_true", help="judge on validation images, into search.jsonl")
    parser.add_argument(
        "--part", type=_part, default=(0, 1), metavar="I/N", help="every N-th task, budget and seed, from the I-th on"
    )
    parser.add_argument("--cache_dir", type=Path, default=Path(tempfile.gettempdir()) / "kgl_evidence")
    parser.add_argument("--output", type=Path, help="a .jsonl file; one in benchmarks/results by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--bf16", action="store_true", help="train in mixed precision: half the time where a CPU has it"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    name = "search.jsonl" if options.search else "evidence.jsonl"
    output = options.output or Path(__file__).parent / "results" / name
    part, parts = options.part
    if min(options.budgets) < 1:
        parser.error(f"--budgets {min(options.budgets)}: it takes one image a class.")
    if options.search and not all(TASKS[task].searched for task in options.tasks):
        able = ", ".join(name for name, task in TASKS.items() if task.searched)
        parser.error(f"--search: only on {able}; the other tasks have no fold that no seed is tested on.")
    output.parent.mkdir(parents=True, exist_ok=True)

    groups = [(seed, task, budget) for seed in options.seeds for task in options.tasks for budget in options.budgets]
    for seed, task, budget in groups[part::parts]:
        wanted = {arm: _identity(arm, task, budget, seed, options.search, options.bf16) for arm in options.arms}
        done = _done(output)
        for arm, identity in wanted.items():
            if done.get((arm, task, budget, seed), identity) != identity:
                parser.error(f"{output} has a run of {arm!r} with other settings; take another --output.")
        missing = [arm for arm in wanted if (arm, task, budget, seed) not in done]
        bench = Bench(task, budget, seed, options.search, options.bf16, options.cache_dir) if missing else None
        for arm_name in missing:
            try:
                figures = bench.run((ARMS | SEARCHED)[arm_name])
            except CannotShuffle as error:  # of this choice of images; the other arms can
                print(task, budget, seed, arm_name, f"left out: {error}", sep="  ", flush=True)
                continue
            line = wanted[arm_name] | {
                "images": len(bench.train), "judged": len(bench.judged), "hardware": hardware(),
                "threads": options.threads, "torch": torch.__version__, "figures": figures,
            }  # fmt: skip
            with output.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
            shown = [f"{key} {figures[key]:.3f}" for key in _SHOWN if key in figures]
            print(task, budget, seed, arm_name, *shown, sep="  ", flush=True)


if __name__ == "__main__":
    main()
