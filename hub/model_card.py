"""The model card of a run: our part rewritten, the user's part kept."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData, EvalResult, ModelCardData, RepoCard
from huggingface_hub.constants import REPOCARD_NAME

from ..configuration_kgl import KGLConfig
from ..data.storage import write_text
from ..errors import InputError
from ..evaluation.advice import describe_loss
from ..evaluation.metrics import METRIC_TITLES
from ..evaluation.report import data_name, results_rows
from ..training.arguments import KGL_TINY


_TEMPLATE = Path(__file__).parents[1] / "hub_card.md"
_OUR_PART = re.compile(r"<!-- kgl:begin.*?-->.*<!-- kgl:end -->", re.DOTALL)
_MODEL_NAME = "knowledge-guided defect classifier"  # tells our entry of the model index from the user's
_METRIC_TYPES = {  # metric -> its type in the Hub's model index
    "ap": "average_precision",
    "auroc": "roc_auc",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "f1_max": "f1",
    "defect_ap": "average_precision",
    "defect_auroc": "roc_auc",
}
_SETTINGS = (  # shown in the card; metrics.json has all of them
    "backbone", "backbone_config", "out_features", "head", "fine_tune", "freeze_stages", "image_height", "image_width",
    "augment", "train_per_class", "train_defect_free", "train_on_masks", "prior_source", "prior_method", "kg_lambda",
    "kg_form", "cls_loss", "class_weights", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "processes", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay",
    "optim", "mixed_precision", "seed",
)  # fmt: skip
_OF_FROZEN_HEADS = (
    "backbone", "out_features", "head", "fine_tune", "image_height", "image_width", "train_per_class",
    "train_defect_free", "train_on_masks", "prior_source", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class UserPart:
    """
    Content of a card that the user wrote.

    Args:
        metadata: YAML entries that the run does not write.
        above: text above our marks.
        below: text below our marks.
        unmarked: the whole card, where our marks were removed.
    """

    metadata: dict[str, Any] = field(default_factory=dict)
    above: str = ""
    below: str = ""
    unmarked: str = ""


def write_card(run: Path, report: dict[str, Any]) -> None:
    """
    Write `final/README.md` of a run, keeping what the user wrote into an existing one.

    Args:
        run: output folder of the run.
        report: the content of `metrics.json`.
    """
    path = run / "final" / REPOCARD_NAME
    user = read_user_part(path.read_text("utf-8"), report) if path.exists() else UserPart()
    write_text(path, render_card(report, KGLConfig.from_pretrained(run / "final"), user))


def run_metadata(report: dict[str, Any]) -> dict[str, Any]:
    """Return the YAML that a run writes into its card, given `metrics.json`; metrics are its `model-index`."""
    settings, final = report["settings"], report["results"]["final"]
    data, backbone = settings["data"], settings["model"]["backbone"]
    metrics = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data["hub_dataset"] or data["dataset"] or data_name(data),
            dataset_name=data_name(data),
            dataset_split="test",
            metric_type=kind,
            metric_name=METRIC_TITLES[name],
            metric_value=round(final[name], 4),
            metric_args={"interval_95": [round(end, 4) for end in final[f"{name}_interval"]]},
        )
        for name, kind in _METRIC_TYPES.items()
        if name in final
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        license=report["licenses"]["model_license"],
        base_model=backbone if backbone is not None and "/" in backbone else None,  # a local folder has no owner
        datasets=[data["hub_dataset"]] if data["hub_dataset"] else None,
        tags=["kgl", "defect-detection", "saliency", "arxiv:2605.17780"],
        model_name=_MODEL_NAME,
        eval_results=metrics,
    ).to_dict()


def read_user_part(text: str, report: dict[str, Any]) -> UserPart:
    """
    Return what the user wrote into the card of a run, given the card and `metrics.json`.

    Raises:
        InputError: the YAML of the card cannot be read.
    """
    try:
        card = RepoCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"The YAML of the model card cannot be read; correct README.md. {' '.join(str(error).split())}"
        ) from error
    ours = _OUR_PART.search(card.text)
    if ours is None and card.text.strip():
        return UserPart(unmarked=text)
    written = run_metadata(report)
    metadata = {}
    for name, value in card.data.to_dict().items():
        if name == "tags":
            value = [tag for tag in value if tag not in written["tags"]]
        elif name == "model-index":
            value = [entry for entry in value if entry.get("name") != _MODEL_NAME]
        elif name in written:
            continue
        if value != []:
            metadata[name] = value
    if ours is None:
        return UserPart(metadata)
    return UserPart(metadata, card.text[: ours.start()].strip(), card.text[ours.end() :].strip())


def merge_user_parts(local: UserPart, remote: UserPart, local_name: str, remote_name: str) -> UserPart:
    """
    Return what the user wrote into two copies of a card; what only one copy has is kept.

    Raises:
        InputError: both copies have text or a YAML entry of the user's, and they differ.
    """
    texts = {text for part in (local, remote) if any(text := (part.above, part.below, part.unmarked))}
    if len(texts) > 1 or local.metadata | remote.metadata != remote.metadata | local.metadata:
        raise InputError(
            f"The model card was edited in {local_name} and differently in {remote_name}: make your text and YAML the "
            "same in both, then push again."
        )
    return UserPart(local.metadata | remote.metadata, *next(iter(texts), ()))


def render_card(report: dict[str, Any], config: KGLConfig, user: UserPart, repo: str | None = None) -> str:
    """
    Return the text of the card.

    Args:
        report: the content of `metrics.json`.
        config: the final classifier's.
        user: kept as it is.
        repo: repository on the Hub, for the code that loads the model.
    """
    if user.unmarked:
        return user.unmarked
    metadata = user.metadata | run_metadata(report)
    for name in ("tags", "model-index"):
        metadata[name] = [*metadata[name], *user.metadata.get(name, [])]
    settings = {name: value for part in report["settings"].values() for name, value in part.items()}
    guided = settings["fine_tune"] and not config.tuned_stage
    shown = _SETTINGS if settings["fine_tune"] else _OF_FROZEN_HEADS
    shown = [name for name in shown if guided or not name.startswith("kg_")]
    # RepoCard, not ModelCard: that one merges the entries of a model index under one name.
    card = RepoCard.from_template(
        CardData(**metadata),
        template_path=str(_TEMPLATE),
        user=user,
        report=report,
        rows=results_rows(report),
        loss=describe_loss(report),
        names=list(config.id2label.values()),
        config=config,
        guided=guided,
        data=report["settings"]["data"],
        data_name=data_name(report["settings"]["data"]),
        settings={name: _format_setting(settings[name]) for name in shown if settings.get(name) is not None},
        licenses=_named_licenses(report["licenses"] | {"model_license": metadata.get("license")}, settings),
        repo=repo,
    )
    return f"{card.content.rstrip()}\n"


def _named_licenses(licenses: dict[str, str | None], settings: dict[str, Any]) -> dict[str, str]:
    stated = {name: license or "not stated" for name, license in licenses.items()}
    named = {"This classifier": stated["model_license"], "The training images": stated["data_license"]}
    if settings["backbone"] == KGL_TINY:
        stated["backbone_license"] = "apache-2.0"
    if settings["backbone"] is not None:
        named[f"The pretrained backbone ({settings['backbone']})"] = stated["backbone_license"]
    return named


def _format_setting(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


__all__ = ["UserPart", "merge_user_parts", "read_user_part", "render_card", "run_metadata", "write_card"]
