"""
What guidance costs: a phase-2 step over a plain Trainer step, and inference with the heat map over inference without.
And what frozen stages save: a step on what two of three stages gave once over a step that computes them again.

    python benchmarks/step_cost.py [--rounds 30] [--threads 1] [--size 160 160] [--batch_size 16]

Both sides of a ratio run in one process, in turns, on the same batch; what is reported is the median of the rounds'
ratios with their quartiles, beside controls of one side against itself. A JSON file with every round's seconds goes
to benchmarks/results.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Image, Value
from measure import BACKBONE, hardware, paired, store
from PIL import Image as PILImage
from torch import nn
from transformers import Trainer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.configuration_kgl import KGLConfig
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


class PlainClassifier(nn.Module):
    """The same backbone and pooling without a saliency head."""

    def __init__(self, model: KGLForImageClassification) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.classifier = nn.Linear(2 * BACKBONE.hidden_sizes[-1], model.config.num_labels)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.backbone(pixel_values).feature_maps[0]
        return self.classifier(torch.cat([features.mean(dim=(2, 3)), features.flatten(2).max(dim=2).values], dim=1))


def random_rows(count: int, size: tuple[int, int], grid: tuple[int, int]) -> Dataset:
    """Noise with priors: what the images show does not change what a step costs."""
    generator = np.random.default_rng(0)
    rows = Dataset.from_dict(
        {
            "image": [PILImage.fromarray(generator.integers(0, 255, size, dtype=np.uint8)) for _ in range(count)],
            "label": [index % 2 for index in range(count)],
            "saliency_prior": [generator.integers(0, 256, grid, dtype=np.uint8) for _ in range(count)],
            "prior_weight": [1.0] * count,
        },
        features=Features(
            image=Image(),
            label=ClassLabel(names=["good", "defect"]),
            saliency_prior=Array2D(grid, "uint8"),
            prior_weight=Value("float32"),
        ),
    )
    return add_prior_thresholds(rows)


def frozen_steps(
    model: KGLForImageClassification,
    rows: Dataset,
    image_processor: ViTImageProcessorPil,
    size: tuple[int, int],
    rounds: int,
) -> dict[str, object]:
    """Collation and guided step with two stages frozen: stored, computed again, and with nothing frozen."""
    augmentation, stages = PairedAugmentation(), 2
    rows = rows.add_column("index", list(range(len(rows))))
    rows = rows.add_column("digest", [f"{index:040x}" for index in range(len(rows))])
    images = [rows[index] for index in range(len(rows))]
    collator = DefectCollator(image_processor, augmentation)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        features = cache_frozen_features(path, rows, model, image_processor, stages, 4, augmentation)
        stored = FrozenFeatureCollator(features, size, augmentation)
        args = KGLTrainingArguments(output_dir=folder, kg_lambda=0.5, kg_schedule="constant")
        trainer = KnowledgeGuidedTrainer(model=model, args=args, train_dataset=rows, data_collator=collator)
        trainer.current_gradient_accumulation_steps = 1
        trainer.state.max_steps = 1
        trainer.create_optimizer()

        def step(batch: dict[str, torch.Tensor]) -> None:
            trainer.training_step(model, batch)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        def on_stored() -> None:
            with bypass_frozen_stages(model, stages):
                step(stored(images))

        def on_recomputed() -> None:
            batch = collator(images)
            batch["pixel_values"] = compute_frozen_features(model, batch["pixel_values"].to(model.device), stages)
            with bypass_frozen_stages(model, stages):
                step(batch)

        return {
            "frozen stages stored over computed again": paired(on_stored, on_recomputed, rounds),
            "frozen stages stored over nothing frozen": paired(on_stored, lambda: step(collator(images)), rounds),
            "control: frozen stages stored over itself": paired(on_stored, on_stored, rounds),
        }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=[160, 160], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch_size", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    size = tuple(options.size)
    model = KGLForImageClassification(KGLConfig(backbone_config=BACKBONE.to_dict(), num_labels=2)).to(device)
    image_processor = ViTImageProcessorPil(size={"height": size[0], "width": size[1]})
    with torch.no_grad():
        grid = tuple(model(torch.zeros(1, 3, *size, device=device)).saliency.shape[-2:])
    rows = random_rows(options.batch_size, size, grid)
    collator = DefectCollator(image_processor, PairedAugmentation())
    guided_rows = [rows[index] for index in range(len(rows))]
    plain_rows = [{name: row[name] for name in ("image", "label")} for row in guided_rows]
    batches = {"with": collator(guided_rows), "without": collator(plain_rows)}

    with tempfile.TemporaryDirectory() as folder:
        args = KGLTrainingArguments(output_dir=folder, kg_lambda=0.5, kg_schedule="constant")
        guided = KnowledgeGuidedTrainer(model=model, args=args, train_dataset=rows, data_collator=collator)
        plain = Trainer(model=model, args=args, train_dataset=rows, data_collator=collator)
    for trainer in (guided, plain):
        trainer.current_gradient_accumulation_steps = 1
        trainer.state.max_steps = 1
        trainer.create_optimizer()

    def step(trainer: Trainer, batch: dict[str, torch.Tensor]) -> None:
        trainer.training_step(model, dict(batch))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    results = {
        "step": paired(lambda: step(guided, batches["with"]), lambda: step(plain, batches["without"]), options.rounds),
        "step with collation": paired(
            lambda: step(guided, collator(guided_rows)), lambda: step(plain, collator(plain_rows)), options.rounds
        ),
        "control: plain step over itself": paired(
            lambda: step(plain, batches["without"]), lambda: step(plain, batches["without"]), options.rounds
        ),
    }
    results |= frozen_steps(model, rows, image_processor, size, options.rounds)
    model.eval()
    without_head = PlainClassifier(model).to(device).eval()
    images = batches["without"]["pixel_values"].to(device)

    def with_class_map() -> None:
        output = model(images)
        layer_cam(model, output.feature_map, output.saliency, output.logits.argmax(dim=1))

    with torch.no_grad():
        for name, with_map in (
            ("inference with H", lambda: model(images).saliency.sigmoid()),
            ("inference with H and class map", with_class_map),
            ("control: inference without over itself", lambda: without_head(images)),
        ):
            results[name] = paired(with_map, lambda: without_head(images), options.rounds)

    print(f"{hardware()}, {options.threads} threads, batch {options.batch_size} x {size[0]} x {size[1]}")
    for name, result in results.items():
        print("{}: ratio {:.3f}, quartiles {:.3f}..{:.3f}".format(name, result["ratio"], *result["quartiles"]))
    store(f"step_cost_{device}_{options.batch_size}x{size[0]}x{size[1]}", vars(options), results)


if __name__ == "__main__":
    main()
