"""
Measure the cost of guidance and of cached features, as ratios of times.

Guidance: a phase-2 step over a plain Trainer step, and inference with the heat map over inference without. Cached
features: a step on the cached output of two of three stages over a step that computes it again.

    python benchmarks/step_cost.py [--rounds 30] [--threads 1] [--size 160 160] [--into docs/results.md]

Both sides of a ratio run in one process, in turns, on the same batch; the result is the median of the rounds' ratios
with quartiles, beside controls of one side against itself. Every round is stored in benchmarks/results.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from torch import nn
from transformers import ResNetConfig, Trainer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.benchmarks.evidence.formatting import markdown_table, replace_block
from kgl.benchmarks.measure import BACKBONE, hardware, paired, store
from kgl.configuration_kgl import KGLConfig
from kgl.heads_kgl import pool_maps
from kgl.knowledge.thresholds import add_prior_thresholds
from kgl.modeling_kgl import KGLForImageClassification
from kgl.saliency.cam import layer_cam
from kgl.training.augmentation import PairedAugmentation
from kgl.training.collator import DefectCollator
from kgl.training.feature_cache import (
    FrozenFeatureCollator,
    bypass_frozen_stages,
    cache_frozen_features,
    compute_frozen_features,
)
from kgl.training.trainer import KnowledgeGuidedTrainer
from kgl.training.training_args import KGLTrainingArguments


# ResNet-18 as the default, heads on frozen features, uses it.
DEFAULT_BACKBONE = ResNetConfig(
    layer_type="basic",
    depths=[2, 2, 2, 2],
    hidden_sizes=[64, 128, 256, 512],
    out_features=["stage2", "stage3", "stage4"],
)
TITLES = {
    "guided_step": "guided step over plain step",
    "guided_step_with_collation": "the same with collation",
    "plain_step_control": "control: plain step over itself",
    "cached_features_over_recomputed": "step on cached features over the same recomputed",
    "cached_features_over_full_training": "step on cached features over training all stages",
    "cached_features_control": "control: step on cached features over itself",
    "inference_with_saliency": "the paper's head: inference with heat map over without",
    "inference_with_saliency_and_class_map": "the paper's head: inference with heat map and class map over without",
    "inference_control": "control: inference without head over itself",
    "default_inference_with_saliency": "the default: inference with heat map over without",
    "default_inference_control": "control: the default's inference without head over itself",
    "tuned_inference": "with a fine-tuned stage: inference over the default's",
    "tuned_inference_control": "control: the default's inference over itself",
}
FROZEN_STAGES = 2
VIEWS = 4
Results = dict[str, dict[str, object]]


class PlainClassifier(nn.Module):
    """The same backbone and pooling without a saliency head."""

    def __init__(self, model: KGLForImageClassification) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.classifier = nn.Linear(2 * sum(model.backbone.channels), model.config.num_labels)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.classifier(pool_maps(tuple(self.backbone(pixel_values).feature_maps)))


def random_rows(count: int, size: tuple[int, int], grid: tuple[int, int]) -> Dataset:
    """Return random images with random priors: a step's cost does not depend on the content."""
    generator = np.random.default_rng(0)
    rows = Dataset.from_dict(
        {
            "image": [PILImage.fromarray(generator.integers(0, 255, size, dtype=np.uint8)) for _ in range(count)],
            "label": [index % 2 for index in range(count)],
            "digest": [f"{index:040x}" for index in range(count)],
            "index": list(range(count)),
            "saliency_prior": [generator.integers(0, 256, grid, dtype=np.uint8) for _ in range(count)],
            "prior_weight": [1.0] * count,
        },
        features=Features(
            image=Image(),
            label=ClassLabel(names=["good", "defect"]),
            digest=Value("string"),
            index=Value("int64"),
            saliency_prior=Array2D(grid, "uint8"),
            prior_weight=Value("float32"),
        ),
    )
    return add_prior_thresholds(rows)


def prepare_trainer(trainer: Trainer) -> Trainer:
    """Make the trainer ready for single steps."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.max_steps = 1
    trainer.create_optimizer()
    return trainer


def take_step(trainer: Trainer, batch: dict[str, torch.Tensor]) -> None:
    """Run forward pass, backward pass and optimizer step."""
    trainer.training_step(trainer.model, dict(batch))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def measure_training(
    model: KGLForImageClassification, rows: Dataset, image_processor: ViTImageProcessorPil, rounds: int
) -> Results:
    """Compare guided with plain steps, and guided steps on cached features with steps without the cache."""
    augmentation, size = PairedAugmentation(), (image_processor.size["height"], image_processor.size["width"])
    collator = DefectCollator(image_processor, augmentation)
    images = [rows[index] for index in range(len(rows))]
    plain_images = [{name: row[name] for name in ("image", "label")} for row in images]
    batch, plain_batch = collator(images), collator(plain_images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        features = cache_frozen_features(path, rows, model, image_processor, FROZEN_STAGES, VIEWS, augmentation)
        cached = FrozenFeatureCollator(features, size, augmentation)
        args = KGLTrainingArguments(output_dir=folder, kg_lambda=0.5)
        common = {"model": model, "args": args, "train_dataset": rows, "data_collator": collator}
        guided, plain = prepare_trainer(KnowledgeGuidedTrainer(**common)), prepare_trainer(Trainer(**common))

        def step_on_cached() -> None:
            with bypass_frozen_stages(model, FROZEN_STAGES):
                take_step(guided, cached(images))

        def step_on_recomputed() -> None:
            collated = collator(images)
            pixel_values = collated["pixel_values"].to(model.device)
            collated["pixel_values"] = compute_frozen_features(model, pixel_values, FROZEN_STAGES)
            with bypass_frozen_stages(model, FROZEN_STAGES):
                take_step(guided, collated)

        def plain_step() -> None:
            take_step(plain, plain_batch)

        def full_step() -> None:
            take_step(guided, collator(images))

        return {
            "guided_step": paired(lambda: take_step(guided, batch), plain_step, rounds),
            "guided_step_with_collation": paired(full_step, lambda: take_step(plain, collator(plain_images)), rounds),
            "plain_step_control": paired(plain_step, plain_step, rounds),
            "cached_features_over_recomputed": paired(step_on_cached, step_on_recomputed, rounds),
            "cached_features_over_full_training": paired(step_on_cached, full_step, rounds),
            "cached_features_control": paired(step_on_cached, step_on_cached, rounds),
        }


@torch.no_grad()
def measure_inference(model: KGLForImageClassification, images: torch.Tensor, rounds: int) -> Results:
    """Compare inference with maps with the same network without a saliency head."""
    model.eval()
    without_head = PlainClassifier(model).to(images.device).eval()

    def with_class_map() -> None:
        output = model(images)
        layer_cam(model, output.feature_maps, output.saliency, output.logits.argmax(dim=1))

    def plain() -> None:
        without_head(images)

    return {
        "inference_with_saliency": paired(lambda: model(images).saliency.sigmoid(), plain, rounds),
        "inference_with_saliency_and_class_map": paired(with_class_map, plain, rounds),
        "inference_control": paired(plain, plain, rounds),
    }


@torch.no_grad()
def measure_tuned_inference(images: torch.Tensor, rounds: int) -> Results:
    """Compare inference with a fine-tuned stage beside the default's heads with that of the default."""
    default, tuned = (default_model(tuned_stage).to(images.device).eval() for tuned_stage in (False, True))
    return {
        "tuned_inference": paired(lambda: tuned(images), lambda: default(images), rounds),
        "tuned_inference_control": paired(lambda: default(images), lambda: default(images), rounds),
    }


def default_model(tuned_stage: bool = False) -> KGLForImageClassification:
    """Return the default's classifier, with random weights."""
    backbone_config = DEFAULT_BACKBONE.to_dict()
    return KGLForImageClassification(
        KGLConfig(backbone_config=backbone_config, num_labels=2, head="stages", tuned_stage=tuned_stage)
    )


def cost_table(results: Results) -> str:
    """Return a table of the ratios, in the order of `TITLES`."""
    rows = []
    for name, title in TITLES.items():
        low, high = results[name]["quartiles"]
        rows.append(
            {"ratio": title, "median": f"{results[name]['ratio']:.3f}", "quartiles": f"{low:.3f} .. {high:.3f}"}
        )
    return markdown_table(rows)


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=[160, 160], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--into", type=Path, help="a page with markers to fill")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    height, width = options.size
    model = KGLForImageClassification(KGLConfig(backbone_config=BACKBONE.to_dict(), num_labels=2)).to(device)
    image_processor = ViTImageProcessorPil(size={"height": height, "width": width})
    with torch.no_grad():
        grid = tuple(model(torch.zeros(1, 3, height, width, device=device)).saliency.shape[-2:])
    rows = random_rows(options.batch_size, (height, width), grid)
    results = measure_training(model, rows, image_processor, options.rounds)
    images = torch.rand(options.batch_size, 3, height, width, device=device)
    results |= measure_inference(model, images, options.rounds)
    of_default = measure_inference(default_model().to(device), images, options.rounds)
    results |= {f"default_{name}": result for name, result in of_default.items() if "class_map" not in name}
    results |= measure_tuned_inference(images, options.rounds)

    settings = {"rounds": options.rounds, "threads": options.threads, "size": [height, width]}
    settings["batch_size"] = options.batch_size
    store(f"step_cost_{device}_{options.batch_size}x{height}x{width}", settings, results)
    block = (
        f"{hardware()}, threads: {options.threads}, batches of {options.batch_size} x {height} x {width}, "
        f"{options.rounds} rounds, both sides in turns in one process.\n\n{cost_table(results)}"
    )
    print(block)
    if options.into is not None:
        options.into.write_text(replace_block(options.into.read_text(), "step cost", block))


if __name__ == "__main__":
    main()
