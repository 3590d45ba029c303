"""Build the classifier and its image processor from settings; load a saved one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, BaseImageProcessor, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.utils import logging

from ..configuration_kgl import KGLConfig
from ..errors import InputError
from ..knowledge.arguments import PriorArguments
from ..knowledge.saliency_priors import check_saliency_method
from ..modeling_kgl import KGLForImageClassification
from .arguments import KGL_TINY, ModelArguments, check_path_or_repo
from .feature_cache import check_freezable, max_freezable_stages


_SHIPPED = Path(__file__).parents[1] / "backbones"
# Raised by transformers for a backbone that it cannot find, read or build.
_UNUSABLE = (ImportError, OSError, SafetensorError, StrictDataclassError, TypeError, UnpicklingError, ValueError)


def build_model(
    model_args: ModelArguments, names: list[str], defect_free_label: str | None
) -> KGLForImageClassification:
    """
    Build the classifier with new heads.

    Args:
        model_args: describes it.
        names: of the classes, in the order of their indices.
        defect_free_label: the class without defects, None where every class is a defect.

    Raises:
        InputError: the backbone cannot be found, read or built.
    """
    config = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "defect_free_label": defect_free_label,
        "fusion_size": model_args.fusion_size,
        "head": model_args.head,
    }
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a backbone's checkpoint holds more than the backbone, which needs no report
    try:
        if model_args.backbone is not None:
            return KGLForImageClassification.from_backbone(
                locate_backbone(model_args.backbone), out_features=model_args.out_features, **config
            )
        backbone_config = model_args.backbone_config
        if isinstance(backbone_config, str):
            backbone_config = json.loads(backbone_config)
        if model_args.out_features is not None:
            backbone_config = {**backbone_config, "out_features": model_args.out_features}
        return KGLForImageClassification(KGLConfig(backbone_config=backbone_config, **config))
    except _UNUSABLE as error:
        option = "--backbone" if model_args.backbone is not None else "--backbone_config"
        message = " ".join(str(error).split())
        raise InputError(f"{option} {model_args.backbone or model_args.backbone_config}: {message}") from error
    finally:
        logging.set_verbosity(verbosity)


@torch.no_grad()
def check_model(model: KGLForImageClassification, size: tuple[int, int], prior_args: PriorArguments) -> None:
    """
    Run one image through an untrained model, so that what cannot work is known before anything is written.

    Args:
        model: as [`build_model`] returns it.
        size: height and width of the images.
        prior_args: the saliency method that will make the priors.

    Raises:
        InputError: the backbone or the saliency method cannot take such images.
    """
    model.eval()
    try:
        model(torch.zeros(1, 3, *size))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"The backbone cannot take images of {size[0]} x {size[1]} pixels: {error}") from error
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))  # a blank image hides differences
    check_saliency_method(noise, model, prior_args)


def locate_backbone(backbone: str) -> str:
    """Return where a backbone is loaded from: the folder of the one that comes with kgl, any other as it is named."""
    return str(_SHIPPED / KGL_TINY) if backbone == KGL_TINY else backbone


def resolve_out_features(model_args: ModelArguments) -> list[str] | None:
    """
    Return the stages to use: as given, else those of the measured recipes for pretrained backbones, else None.

    Raises:
        InputError: the backbone cannot be found or read.
    """
    if model_args.out_features is not None or model_args.backbone is None or model_args.backbone.startswith("timm/"):
        return model_args.out_features
    check_path_or_repo("--backbone", model_args.backbone)
    try:
        config, _ = PreTrainedConfig.get_config_dict(locate_backbone(model_args.backbone))
    except OSError as error:
        raise InputError(
            f"--backbone {model_args.backbone}: it cannot be read. Give a folder with a pretrained backbone, or a "
            f"model of the Hub, which has to be reachable the first time, or {KGL_TINY}, a small one that needs no "
            f"connection. ({' '.join(str(error).split())})"
        ) from error
    names = AutoConfig.for_model(**config).to_dict().get("stage_names") or []
    if model_args.head == "stages":
        return names[-3:] if len(names) in (4, 5) else None  # the stem and three or four stages
    return ["stage3"] if config.get("model_type") == "resnet" else None


def with_cells(model_args: ModelArguments) -> ModelArguments:
    """Return the settings of a model on the same backbone whose cells good parts can be learned from."""
    cells = replace(model_args, head="stages", out_features=None)
    return replace(cells, out_features=resolve_out_features(cells))


def resolve_freeze_stages(model: KGLForImageClassification, model_args: ModelArguments) -> int:
    """
    Return how many stages to freeze.

    As given, else 2 where the backbone is pretrained and allows it, else 0; all but the one to tune where that is one.

    Raises:
        InputError: these stages cannot be frozen.
    """
    most, given = max_freezable_stages(model), model_args.freeze_stages
    if model_args.tunes_stage:
        if given not in (None, most):
            raise InputError(f"--freeze_stages {given}: with --head stages all {most} below the tuned one are frozen.")
        return most
    if given is None:
        return 2 if model_args.backbone is not None and most >= 2 else 0
    if given != 0:
        check_freezable(model, given)
    return given


def make_image_processor(model_args: ModelArguments) -> BaseImageProcessor:
    """
    Build the image processor: resizing to the given size, and the backbone's own normalisation where it has one.

    Raises:
        InputError: the backbone's normalisation cannot be read.
    """
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if model_args.backbone is not None and model_args.backbone.startswith("timm/"):
        try:
            from timm.models import get_pretrained_cfg
        except ImportError as error:
            raise InputError(f"--backbone {model_args.backbone}: it needs timm; pip install it first.") from error
        own = get_pretrained_cfg(model_args.backbone.removeprefix("timm/"))
        if own is not None:
            mean, std = own.mean, own.std
    elif model_args.backbone is not None:
        try:
            # Only the numbers: AutoImageProcessor needs torchvision in older versions of transformers.
            own, _ = BaseImageProcessor.get_image_processor_dict(locate_backbone(model_args.backbone))
            mean, std = own["image_mean"], own["image_std"]
        except (KeyError, OSError, TypeError) as error:
            raise InputError(
                f"--backbone {model_args.backbone}: its image_mean and image_std cannot be read. Give a folder with a "
                "preprocessor_config.json, or the id of a model of the Hub, which has to be reachable the first time. "
                f"({' '.join(str(error).split())})"
            ) from error
    size = {"height": model_args.image_height, "width": model_args.image_width}
    return ViTImageProcessorPil(size=size, image_mean=list(mean), image_std=list(std))


def load_classifier(model: str) -> tuple[KGLForImageClassification, BaseImageProcessor]:
    """
    Load a classifier saved by `kgl train`, and its image processor.

    Args:
        model: a folder or a Hub id.

    Raises:
        InputError: it is not such a classifier; the message names `--model`.
    """
    phases = [str(Path(model) / phase) for phase in ("primary", "final") if (Path(model) / phase).is_dir()]
    if phases:
        raise InputError(f"--model {model}: this is the folder of a run; give {' or '.join(phases)}.")
    check_path_or_repo("--model", model)
    try:
        if PreTrainedConfig.get_config_dict(model)[0].get("model_type") != KGLConfig.model_type:
            raise InputError(f"--model {model}: it is not a classifier saved by kgl train.")
        return (
            KGLForImageClassification.from_pretrained(model, use_safetensors=True),
            ViTImageProcessorPil.from_pretrained(model),  # the class that kgl train saves
        )
    except StrictDataclassError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"--model {model}: its config was changed, or is of another version of kgl: {reason}"
        ) from error
    except (OSError, SafetensorError) as error:
        what = (
            "it is not a classifier saved by kgl train"
            if Path(model).exists()
            else "there is no such folder, and it cannot be loaded from the Hub"
        )
        raise InputError(f"--model {model}: {what}. {error}") from error


__all__ = [
    "build_model",
    "check_model",
    "load_classifier",
    "locate_backbone",
    "make_image_processor",
    "resolve_freeze_stages",
    "resolve_out_features",
    "with_cells",
]
