"""
Pretrain `kgl-tiny`, the backbone that comes with kgl, on generated textures: a quarter of an hour of one CPU core.

    OMP_NUM_THREADS=1 python pretraining/kgl_tiny.py --output backbones/kgl-tiny

Three tasks are learned together: which texture it is, from the last stage; where it is not itself, from every cell of
every stage; and the same from the distance of a cell from the others of its image. No image of any dataset is used,
nor a surface of `kgl.data.synthetic`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import ResNetBackbone, ResNetConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.knowledge.cells import raw_cells
from kgl.pretraining.anomalies import KINDS, draw_shape, fill
from kgl.pretraining.textures import draw_texture, texture_classes


MEAN, STD = 0.5, 0.2  # of the pixels in 0..1, as preprocessor_config.json has them
BACKBONE = ResNetConfig(
    layer_type="basic", embedding_size=48, hidden_sizes=[32, 64, 128], depths=[2, 2, 2],
    out_features=["stage1", "stage2", "stage3"],
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """
    Settings of the pretraining.

    Attributes:
        classes: of textures.
        images_per_class: that are drawn once; every batch crops, turns, scales and blends them anew.
        shapes_per_kind: of anomalies that are drawn once.
        drawn_size: side of the drawn images in pixels.
        size: side of the training images in pixels.
        steps, batch_size, learning_rate, weight_decay: of AdamW with one cycle of the learning rate.
        anomalies: that an image can have.
        anomalous: the probability of each.
        seed: of everything.
    """

    classes: int = 200
    images_per_class: int = 24
    shapes_per_kind: int = 400
    drawn_size: int = 144
    size: int = 64
    steps: int = 5000
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    anomalies: int = 2
    anomalous: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Normalised images `(B, 3, H, W)`, their textures `(B,)`, and the kind of anomaly of pixels `(B, H, W)`, or 0."""

    pixel_values: torch.Tensor
    textures: torch.Tensor
    kinds: torch.Tensor


class TrainingImages:
    """
    Drawn textures and shapes, and batches of random views of them; the same seed gives the same batches.

    Args:
        recipe: of the pretraining.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        numbers = np.random.default_rng([recipe.seed, 1])
        textures = texture_classes(recipe.classes, recipe.seed)
        drawn = [
            draw_texture(texture, recipe.drawn_size, numbers)
            for texture in tqdm(textures, "Textures")
            for _ in range(recipe.images_per_class)
        ]
        self.images = torch.from_numpy(np.stack(drawn)).half()[:, None]
        shapes = [
            draw_shape(kind, recipe.drawn_size, numbers) for kind in KINDS for _ in range(recipe.shapes_per_kind)
        ]
        self.shapes = torch.from_numpy(np.stack(shapes)).half()[:, None]
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def batch(self) -> Batch:
        """Return the next batch."""
        recipe, count = self.recipe, self.recipe.batch_size
        chosen = torch.randint(0, len(self.images), (count,), generator=self.generator)
        images = self._views(self.images[chosen], 0.7, 1.4, middle=0.5)
        images = images / images.std(dim=(2, 3), keepdim=True).clamp(min=0.3)
        others = images.roll(1, 0)
        # Half of the images have a weaker texture over theirs.
        over = (0.7 * self._uniform(count) * (self._uniform(count) < 0.5))[:, None, None, None]
        images = (1 - over**2).sqrt() * images + over * images.roll(2, 0)
        target = torch.zeros(count, 1, recipe.size, recipe.size, dtype=torch.long)
        for _ in range(recipe.anomalies):
            drawn = torch.randint(0, len(self.shapes), (count,), generator=self.generator)
            kinds = drawn // recipe.shapes_per_kind
            shapes = self._views(self.shapes[drawn], 0.5, 1.5, middle=0.8).clamp(0, 1)
            shapes = shapes * (self._uniform(count) < recipe.anomalous)[:, None, None, None]
            images = fill(images, shapes, kinds, others, self.generator)
            target = torch.where(shapes > 0.4, 1 + kinds[:, None, None, None], target)
        return Batch(self._photograph(images), chosen // recipe.images_per_class, target[:, 0])

    def _uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator)

    def _views(self, images: torch.Tensor, low: float, high: float, middle: float) -> torch.Tensor:
        """Return turned, mirrored and scaled crops `(n, 1, size, size)`, their middles in the middle of the images."""
        count, size = len(images), self.recipe.size
        angle, scale = 2 * np.pi * self._uniform(count), low * (high / low) ** self._uniform(count)
        zoom = size / images.shape[-1] / scale
        mirror = torch.randint(0, 2, (count,), generator=self.generator) * 2.0 - 1
        cosine, sine = zoom * angle.cos(), zoom * angle.sin()
        shift = (self._uniform(2, count) * 2 - 1) * (middle if middle < 0.6 else middle * zoom)
        rows = [torch.stack([mirror * cosine, -sine, shift[0]]), torch.stack([mirror * sine, cosine, shift[1]])]
        theta = torch.stack(rows).permute(2, 0, 1)
        grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)
        padding = "reflection" if middle < 0.6 else "zeros"
        return F.grid_sample(images.float(), grid, padding_mode=padding, align_corners=False)

    def _photograph(self, images: torch.Tensor) -> torch.Tensor:
        """Return normalised colour images `(B, 3, H, W)`: random exposure, contrast, shading, tint and noise."""
        count, size = len(images), images.shape[-1]
        contrast = 0.05 * (2.4 ** self._uniform(count, 1, 1, 1))
        line = torch.linspace(-0.5, 0.5, size)
        slopes = 2.5 * (self._uniform(2, count, 1, 1, 1) - 0.5)
        shading = slopes[0] * line[:, None] + slopes[1] * line[None, :]
        images = 0.3 + 0.4 * self._uniform(count, 1, 1, 1) + contrast * (images + shading)
        tinted = (self._uniform(count, 1, 1, 1) < 0.3) * (self._uniform(count, 3, 1, 1) - 0.5) * 0.2
        noise = 0.015 * self._uniform(count, 1, 1, 1) * torch.randn(images.shape, generator=self.generator)
        return ((images + tinted + noise).clamp(0, 1) - MEAN) / STD


class PretrainingModel(nn.Module):
    """
    The backbone with the heads of both tasks, linear so that what they need lies in the features.

    Args:
        classes: of textures.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = ResNetBackbone(BACKBONE)
        self.texture = nn.Linear(self.backbone.channels[-1], classes)
        self.anomaly = nn.ModuleList(nn.Conv2d(channels, 1 + len(KINDS), 1) for channels in self.backbone.channels)
        self.distance = nn.Parameter(torch.tensor([2.0, -4.0]))

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the loss of each task, `texture` and the mean of all stages' `anomaly`."""
        maps = self.backbone(batch.pixel_values.to(memory_format=torch.channels_last)).feature_maps
        texture = F.cross_entropy(self.texture(maps[-1].mean(dim=(2, 3))).float(), batch.textures)
        anomaly = [self._anomaly_loss(head(one).float(), batch) for head, one in zip(self.anomaly, maps, strict=True)]
        distance = self._distance_loss(maps, batch)
        return {"texture": texture, "anomaly": torch.stack(anomaly).mean(), "distance": distance}

    def _distance_loss(self, maps: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
        """
        Return the cross-entropy of "this cell is an anomaly" by its distance from the mean good cell of its image.

        Cells are those of `KGLCellHead`: of the two finest stages, averaged over 3 x 3. So the features learn to be
        alike wherever a texture is itself, which is what a saliency head of good cells needs.
        """
        cells = raw_cells([one.float() for one in maps[:2]])
        touched = F.adaptive_max_pool2d((batch.kinds > 0)[:, None].float(), cells.shape[-2:])
        good = 1 - touched
        means = (cells * good).sum(dim=(2, 3), keepdim=True) / good.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        squares = (cells - means) ** 2
        spread = (squares * good).sum(dim=(0, 2, 3), keepdim=True) / good.sum() + 1e-3
        distances = (squares / spread).mean(dim=1, keepdim=True).clamp(min=1e-6).sqrt()
        logits = self.distance[0] * distances + self.distance[1]
        return F.binary_cross_entropy_with_logits(logits, touched, pos_weight=torch.tensor(3.0))

    @staticmethod
    def _anomaly_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy of each cell's kind, 0 for cells that no anomaly touches."""
        target = F.adaptive_max_pool2d(batch.kinds[:, None].float(), logits.shape[-2:])[:, 0].long()
        weight = torch.tensor([1.0] + [3.0] * len(KINDS))
        return F.cross_entropy(logits, target, weight)


def pretrain(recipe: Recipe) -> tuple[ResNetBackbone, list[dict[str, float]]]:
    """Return the pretrained backbone in eval mode, and the mean losses of every twentieth of the steps."""
    torch.manual_seed(recipe.seed)
    images, model = TrainingImages(recipe), PretrainingModel(recipe.classes)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.15)
    history, recent = [], []
    progress = tqdm(range(1, recipe.steps + 1), "Pretraining")
    for step in progress:
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses(images.batch())
        optimizer.zero_grad()
        (0.2 * losses["texture"] + losses["anomaly"] + losses["distance"]).backward()
        optimizer.step()
        schedule.step()
        recent.append({name: loss.item() for name, loss in losses.items()})
        if step % max(1, recipe.steps // 20) == 0:
            means = {name: float(np.mean([one[name] for one in recent])) for name in losses}
            history.append({"step": step} | {name: round(value, 4) for name, value in means.items()})
            progress.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
            recent = []
    return model.backbone.eval(), history


def save(
    backbone: ResNetBackbone, recipe: Recipe, history: list[dict[str, float]], seconds: float, folder: Path
) -> None:
    """Write weights, configuration, image normalisation, and how they were made, into a folder."""
    backbone.to(memory_format=torch.contiguous_format).save_pretrained(folder)
    size = {"height": recipe.size, "width": recipe.size}
    ViTImageProcessorPil(size=size, image_mean=[MEAN] * 3, image_std=[STD] * 3).save_pretrained(folder)
    record = {"recipe": asdict(recipe), "seconds": round(seconds), "torch": torch.__version__, "losses": history}
    (folder / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="Folder of the backbone.")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="Training steps (default: %(default)s).")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="Of everything (default: %(default)s).")
    arguments = parser.parse_args()
    recipe, started = Recipe(steps=arguments.steps, seed=arguments.seed), time.perf_counter()
    backbone, history = pretrain(recipe)
    save(backbone, recipe, history, time.perf_counter() - started, arguments.output)


if __name__ == "__main__":
    main()
