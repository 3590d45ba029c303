"""Tiny classifiers and images of the saliency tests, in float64."""

import torch
from tiny import tiny_model
from torch import nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from kgl.modeling_kgl import KGLForImageClassification


TARGETS = torch.tensor([0, 1, 2])


def images(height: int = 32, width: int = 64) -> torch.Tensor:
    """Three random images `(3, 3, height, width)`, the same every time."""
    return torch.randn(3, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sharp_model(backbone: str = "resnet") -> KGLForImageClassification:
    """A kgl model whose head's weights are so large that every term of a gradient matters."""
    model = tiny_model(backbone).double()
    with torch.no_grad():
        model.classifier.weight.normal_()
        model.saliency_head.weight.normal_()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # biases for FullGrad to find
                module.bias.normal_(std=0.3)
                module.running_mean.normal_(std=0.3)
    return model


def resnet_classifier() -> ResNetForImageClassification:
    """A convolutional classifier of transformers."""
    torch.manual_seed(0)
    config = ResNetConfig(layer_type="basic", embedding_size=8, depths=[1, 1], hidden_sizes=[8, 12], num_labels=3)
    return ResNetForImageClassification(config).double().eval()


def vit_classifier() -> ViTForImageClassification:
    """A classifier on tokens, with a class token."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=(32, 64),
        patch_size=8, num_labels=3, initializer_range=0.5,
    )  # fmt: skip
    return ViTForImageClassification(config).double().eval()


def swin_classifier() -> SwinForImageClassification:
    """A classifier on tokens, without a class token."""
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=3
    )
    return SwinForImageClassification(config).double().eval()
