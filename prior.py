"""Phase 1 to phase 2: what a primary classifier looked at, as columns of the training set. Also a command."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import Array2D, ClassLabel, Dataset, Features, Image, IterableDataset, Value, concatenate_datasets
from datasets.fingerprint import generate_random_fingerprint
from safetensors import SafetensorError
from transformers import BaseImageProcessor, PreTrainedConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.collator import to_pixel_values
from kgl.commands import parse_settings, run_command
from kgl.configuration_kgl import KGLConfig
from kgl.data import DataArguments, load_defect_dataset
from kgl.errors import InputError, check_choices
from kgl.modeling_kgl import KGLForImageClassification
from kgl.saliency import METHODS, compute_saliency, to_grid, to_uint8
from kgl.saliency.activations import undisturbed
from kgl.schema import decoded, digests_of, mask_array, mask_on_grid, rows_digest, undecoded
from kgl.shards import Columns, map_in_shards


WEIGHTINGS = ("keep_all", "drop_wrong", "confidence")


@dataclass
class PriorArguments:
    """How priors are made, and how far they are trusted."""

    prior_method: str = field(
        default="gradcam++", metadata={"help": "What makes the saliency maps.", "choices": list(METHODS)}
    )
    prior_layers: list[str] | None = field(
        default=None,
        metadata={"help": "CAM methods: modules whose outputs are looked at, fused; the pooled features by default."},
    )
    prior_weighting: str = field(
        default="keep_all",
        metadata={
            "help": "What a defective picture's prior counts: 1 (keep_all), 0 where the primary is wrong about it "
            "(drop_wrong), or the primary's probability of its class (confidence).",
            "choices": list(WEIGHTINGS),
        },
    )

    def __post_init__(self) -> None:
        check_choices(self, {"prior_method": METHODS, "prior_weighting": WEIGHTINGS})


def add_saliency_priors(
    dataset: Dataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    batch_size: int = 16,
    args: PriorArguments | None = None,
) -> Dataset:
    """
    Add the columns `saliency_prior` (`(h, w)` uint8, the map's peak at 255) and `prior_weight` (float32).

    The prior is the saliency map of the true class on the grid of the model's features. Images of the config's
    defect-free class get a blank one; where a row has a `mask`, it takes the prior's place, a cell counting as defect
    where any of its pixels does. Both count 1. What the others count is `args.prior_weighting`'s to say. A map or mask
    of a picture with a defect that is empty counts 0.

    Args:
        dataset: columns `image`, `label` and, where there are any, `mask`.
        model: the primary classifier; left in the mode it was in.
        image_processor: the one the model was trained with.
        batch_size: images a forward pass.
        args: Grad-CAM++ of the pooled features, each map counting 1, by default.

    Raises:
        InputError: classes that are not the model's, a layer that it does not have, a map that is not finite.
    """
    priors_of, features = _priors_of(dataset, model, image_processor, args or PriorArguments())
    priors = undecoded(dataset).map(
        priors_of,
        batched=True,
        batch_size=batch_size,
        remove_columns=dataset.column_names,
        features=features,
        keep_in_memory=True,  # under 3 kB an image, and nothing stale from a cache
        load_from_cache_file=False,
        new_fingerprint=generate_random_fingerprint(),  # what another model gave is another data set
        desc="Saliency priors",
    )
    return concatenate_datasets([dataset, priors], axis=1)


def write_saliency_priors(
    dataset: Dataset | IterableDataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    folder: Path,
    batch_size: int = 16,
    args: PriorArguments | None = None,
) -> Dataset:
    """
    The columns that [`add_saliency_priors`] adds, on disk at `folder` and for sets of any size.

    Called by every process of `accelerate launch`, they share the work. Stopped and called again it goes on; finished
    before it computes nothing, and what another model, other pictures or other settings gave is never taken.

    Returns:
        A table of the priors alone, in the order of the rows, with the pictures' `digest` and, where there is such a
        column, their `file_name`. [`with_priors`] puts it beside the pictures.

    Raises:
        InputError: as [`add_saliency_priors`]; `folder` holds something else, or the disk is full.
    """
    args = args or PriorArguments()
    priors_of, features = _priors_of(dataset, model, image_processor, args)
    kept = {name: dataset.features[name] for name in ("file_name",) if name in dataset.features}
    names = dataset.features["label"].names
    settings = json.dumps([asdict(args), image_processor.to_dict(), model_digest(model)], sort_keys=True, default=str)

    def identify(rows: Columns) -> str:
        return hashlib.sha1(f"{settings} {rows_digest(rows, names)}".encode()).hexdigest()

    def compute(rows: Columns) -> Columns:
        return {name: rows[name] for name in kept} | {"digest": digests_of(rows)} | priors_of(rows)

    return map_in_shards(
        undecoded(dataset),
        compute,
        identify,
        folder,
        features=Features(kept | {"digest": Value("string")} | features),
        batch_size=batch_size,
        title="Saliency priors",
    )


def with_priors(dataset: Dataset, priors: Dataset) -> Dataset:
    """
    The data set with the columns that [`write_saliency_priors`] made of it.

    Raises:
        InputError: the priors are of other pictures.
    """
    pictures = "digest" if "digest" in dataset.column_names else "image"
    if digests_of(undecoded(dataset.select_columns([pictures]))[:]) != priors[:]["digest"]:
        raise InputError("These priors are of other pictures, or of the same in another order.")
    return concatenate_datasets([dataset, priors.select_columns(["saliency_prior", "prior_weight"])], axis=1)


def _priors_of(
    dataset: Dataset | IterableDataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    args: PriorArguments,
) -> tuple[Callable[[Columns], Columns], Features]:
    """The function from a batch of undecoded rows to their priors and weights, and its columns' types."""
    features = dataset.features or {}
    if not isinstance(features.get("image"), Image) or not isinstance(features.get("label"), ClassLabel):
        raise InputError("The data set has no columns image and label of the types datasets.Image and ClassLabel.")
    names = features["label"].names
    check_classes(names, model)
    first = next(iter(dataset), None)
    if first is None:
        raise InputError("The data set has no pictures.")
    grid = try_method(to_pixel_values([first["image"]], image_processor).to(model.device), model, args)

    def priors_of(rows: Columns) -> Columns:
        pictures = [decoded(image) for image in rows["image"]]
        pixel_values = to_pixel_values(pictures, image_processor).to(model.device)
        targets = torch.tensor([model.config.label2id[names[label]] for label in rows["label"]], device=model.device)
        with _uncalibrated(model):
            maps = compute_saliency(model, pixel_values, targets, args.prior_method, args.prior_layers)
            weights = _weights(model, pixel_values, targets, args.prior_weighting)
        maps = to_uint8(to_grid(maps, grid), rows.get("file_name"))
        good = np.array([names[label] == model.config.defect_free_label for label in rows["label"]])
        maps[good], weights[good] = 0, 1
        for index, mask in enumerate(map(decoded, rows.get("mask", []))):
            if mask is not None:
                whole = mask_array(mask, (mask.height, mask.width))
                maps[index], weights[index] = mask_on_grid(whole[None], grid)[0] * np.uint8(255), 1
        # A defect's map or mask that is empty does not say that there is none.
        weights[~good & (maps.max(axis=(1, 2)) == 0)] = 0
        return {"saliency_prior": list(maps), "prior_weight": weights.tolist()}

    return priors_of, Features(saliency_prior=Array2D(grid, "uint8"), prior_weight=Value("float32"))


@contextmanager
def _uncalibrated(model: KGLForImageClassification) -> Iterator[None]:
    """Within, at temperature 1: validation pictures, which choose it, have no say in priors."""
    temperature, model.config.temperature = model.config.temperature, 1.0
    try:
        yield
    finally:
        model.config.temperature = temperature


@torch.no_grad()
def try_method(pixel_values: torch.Tensor, model: KGLForImageClassification, args: PriorArguments) -> tuple[int, int]:
    """
    The grid of the model's features, once the method has worked on one picture.

    Raises:
        InputError: it does not; the message names `--prior_method`, and `--prior_layers` where they are given.
    """
    try:
        compute_saliency(model, pixel_values, None, args.prior_method, args.prior_layers)
    except ValueError as error:
        layers = f" --prior_layers {' '.join(args.prior_layers)}" if args.prior_layers else ""
        raise InputError(f"--prior_method {args.prior_method}{layers}: {error}") from error
    with undisturbed(model):
        return tuple(model(pixel_values).saliency.shape[-2:])


@torch.no_grad()
def _weights(
    model: KGLForImageClassification, pixel_values: torch.Tensor, targets: torch.Tensor, weighting: str
) -> np.ndarray:
    if weighting == "keep_all":
        return np.ones(len(targets), dtype=np.float32)
    with undisturbed(model):
        probabilities = model(pixel_values).logits.float().softmax(dim=1)
    if weighting == "drop_wrong":
        return (probabilities.argmax(dim=1) == targets).float().cpu().numpy()
    return probabilities.gather(1, targets[:, None])[:, 0].cpu().numpy()


def model_digest(model: KGLForImageClassification) -> str:
    """A SHA-1 of the weights and of what the config says of the network and its classes."""
    config = model.config.to_dict()
    foreign = "_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version"
    for of_the_file in foreign:
        config.pop(of_the_file, None)
        config["backbone_config"].pop(of_the_file, None)
    digest = hashlib.sha1(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass
class PriorPassArguments:
    """Which model makes the priors, and where they go."""

    model: str = field(metadata={"help": "A classifier saved by kgl-train: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Gets priors/, the table of priors (datasets.load_from_disk)."})
    batch_size: int = field(default=16, metadata={"help": "Pictures a forward pass."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"--batch_size {self.batch_size}: it must be at least 1.")


def check_classes(names: list[str], model: KGLForImageClassification) -> None:
    """
    Raises:
        InputError: a data set's classes are not the model's, in whatever order.
    """
    if set(names) != set(model.config.label2id):
        raise InputError(f"The data set's classes {names} are not the model's {list(model.config.label2id)}.")


def load_classifier(model: str) -> tuple[KGLForImageClassification, BaseImageProcessor]:
    """
    A classifier saved by kgl-train, and its image processor.

    Raises:
        InputError: there is none; the message names `--model`.
    """
    phases = [str(Path(model) / phase) for phase in ("primary", "final") if (Path(model) / phase).is_dir()]
    if phases:
        raise InputError(f"--model {model}: this is a run's folder; take {' or '.join(phases)}.")
    try:
        if PreTrainedConfig.get_config_dict(model)[0].get("model_type") != KGLConfig.model_type:
            raise InputError(f"--model {model}: it is no classifier that kgl-train saved.")
        return (
            KGLForImageClassification.from_pretrained(model, use_safetensors=True),
            ViTImageProcessorPil.from_pretrained(model),  # what kgl-train saves
        )
    except (OSError, SafetensorError) as error:
        what = (
            "it is no saved classifier of kgl"
            if Path(model).exists()
            else "there is no such folder, and the Hub gives none"
        )
        raise InputError(f"--model {model}: {what}. {error}") from error


def run(pass_args: PriorPassArguments, prior_args: PriorArguments, data_args: DataArguments) -> Dataset:
    """
    Write the priors of a data set's training split to `output_dir/priors`, or go on with writing them.

    Where several processes do it, their group ends with it.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    folder = Path(pass_args.output_dir) / "priors"
    model, image_processor = load_classifier(pass_args.model)
    train = load_defect_dataset(data_args)["train"]
    priors = write_saliency_priors(
        train, model.to(state.device), image_processor, folder, pass_args.batch_size, prior_args
    )
    state.destroy_process_group()
    if state.is_main_process:
        print(f"Priors of {len(priors)} pictures in {folder}")
    return priors


def main() -> None:
    """The command `kgl-prior`."""
    dataclasses = (PriorPassArguments, PriorArguments, DataArguments)
    run_command("kgl-prior", lambda: run(*parse_settings("kgl-prior", dataclasses, sys.argv[1:])))


__all__ = [
    "WEIGHTINGS",
    "PriorArguments",
    "PriorPassArguments",
    "add_saliency_priors",
    "check_classes",
    "load_classifier",
    "main",
    "model_digest",
    "run",
    "try_method",
    "with_priors",
    "write_saliency_priors",
]


if __name__ == "__main__":
    main()
