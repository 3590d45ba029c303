"""Tiny models and paths that several tests use."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import ConvNextV2Config, Dinov2Config, PreTrainedConfig, ResNetConfig, ResNetModel, SwinConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.configuration_kgl import KGLConfig
from kgl.modeling_kgl import KGLForImageClassification


SHARED = Path(__file__).resolve().parents[2] / "shared"
TRAIN_SCRIPT = Path(__file__).resolve().parents[1] / "train.py"

TINY_BACKBONES: dict[str, PreTrainedConfig] = {
    "resnet": ResNetConfig(
        layer_type="basic", embedding_size=8, depths=[1, 1, 1], hidden_sizes=[8, 12, 16], out_features=["stage3"]
    ),
    "convnextv2": ConvNextV2Config(
        num_stages=3, depths=[1, 1, 1], hidden_sizes=[8, 12, 16], out_features=["stage3"]
    ),
    "swin": SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 2, 2], window_size=4,
        out_features=["stage3"],
    ),
    "dinov2": Dinov2Config(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        out_features=["stage2"],
    ),
}  # fmt: skip


def launched(processes: int) -> list[str]:
    """Return the start of a command in several processes; `accelerate launch --cpu` starts one, whatever its flags."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *launcher]


def tiny_model(backbone: str = "resnet", *, seed: int = 0, **config_kwargs: object) -> KGLForImageClassification:
    """A tiny random classifier in eval mode."""
    config_kwargs = {"id2label": {0: "good", 1: "scratch", 2: "pit"}, "defect_free_label": "good"} | config_kwargs
    config_kwargs["label2id"] = {label: index for index, label in config_kwargs["id2label"].items()}
    torch.manual_seed(seed)
    backbone_config = TINY_BACKBONES[backbone].to_dict()
    return KGLForImageClassification(KGLConfig(backbone_config=backbone_config, **config_kwargs)).eval()


def stages_model(*, seed: int = 0, **config_kwargs: object) -> KGLForImageClassification:
    """A tiny classifier with the head `stages` on three stages, strides 8 to 32, and random heads, in eval mode."""
    config_kwargs = {"id2label": {0: "good", 1: "scratch", 2: "pit"}, "defect_free_label": "good"} | config_kwargs
    backbone = four_stages(out_features=["stage2", "stage3", "stage4"]).to_dict()
    sizes = {"head": "stages", "cell_size": 6, "memory_size": 5}
    torch.manual_seed(seed)
    model = KGLForImageClassification(KGLConfig(backbone_config=backbone, **(sizes | config_kwargs))).eval()
    with torch.no_grad():
        for head in (model.saliency_head, model.classifier):
            for parameter in head.parameters():
                parameter.normal_()
        memory = model.saliency_head.memory
        memory.bias.copy_(-memory.weight.square().sum(dim=(1, 2, 3)) / 2)  # so that distances are distances
    return model


def four_stages(**config_kwargs: object) -> ResNetConfig:
    """The config of a tiny ResNet of four stages, as pretrained ones have."""
    return ResNetConfig(
        layer_type="basic", embedding_size=8, depths=[1] * 4, hidden_sizes=[8, 12, 16, 20], **config_kwargs
    )


def save_backbone(folder: Path) -> Path:
    """Save a tiny random ResNet as a pretrained backbone."""
    torch.manual_seed(0)
    ResNetModel(four_stages()).save_pretrained(folder)
    ViTImageProcessorPil().save_pretrained(folder)
    return folder


def make_images(folder: Path, good: int = 12, scratched: int = 6, faint: bool = False) -> Path:
    """
    Good and scratched 48 x 40 grey images in `folder`, one folder per class.

    No tiny model tells many `faint` ones apart without a mistake.
    """
    generator = np.random.default_rng(0)
    for label, count in (("good", good), ("scratch", scratched)):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(90, 130, (40, 48), dtype=np.uint8)
            if label == "scratch":
                pixels[index + 5, 8:40] = pixels[index + 5, 8:40] + 6 + 2 * index if faint else 250
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return folder


def shared(*parts: str) -> Path:
    """A path in the shared data folder; the test is skipped where it is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the shared data: {Path(*parts)} is not there")
    return path


def save_noise(path: Path, *seed: int, size: tuple[int, int] = (24, 24)) -> None:
    """Save grey noise of `size = (width, height)`, which differs with the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([*seed, len(path.name)]).integers(0, 255, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def save_mask(path: Path, marked: bool = True) -> None:
    """Save a 24 x 24 mask with a diagonal defect, or an empty one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(24, dtype=np.uint8) * 255 * marked).save(path)


def count_labels(*splits: Dataset) -> Counter[str]:
    """Return the number of images of each class in all splits together."""
    return Counter(name for split in splits for name in split.features["label"].int2str(split["label"]))
