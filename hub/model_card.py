"""The model card: filled by every run, merged with its owner's edits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import CardData, EvalResult, ModelCardData, RepoCard
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..configuration_kgl import KGLConfig
from ..errors import InputError
from ..evaluation.report import data_name, headline_rows
from ..training.arguments import LicenseArguments, teaches_saliency


_BEGIN = (
    "<!-- kgl:begin. From here to kgl:end the text is written anew at every push. Yours goes above or below, and "
    "stays; without these two lines the whole card is yours. -->"
)
_END = "<!-- kgl:end -->"
_GENERATED = re.compile(r"<!-- kgl:begin.*?-->.*<!-- kgl:end -->", re.DOTALL)
# A constant, so that these figures are found again, and renewed, in a card that also holds its owner's.
_MODEL_NAME = "knowledge-guided defect classifier"
_RENEWED = (
    "base_model",
    "datasets",
    "model-index",
)  # YAML that says what this run did; the rest is the owner's to change
_METRICS = {  # figure -> type and name in the model-index
    "ap": ("average_precision", "AP"),
    "auroc": ("roc_auc", "AUROC"),
    "accuracy": ("accuracy", "Accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "Balanced accuracy"),
    "f1_max": ("f1", "F1 at its best threshold"),
    "defect_ap": ("average_precision", "AP, defect against good"),
    "defect_auroc": ("roc_auc", "AUROC, defect against good"),
}
_SETTINGS = (  # what the card tells of the settings; metrics.json has all of them
    "backbone", "backbone_config", "out_features", "pooling", "freeze_stages", "image_height", "image_width",
    "augment", "train_per_class", "train_defect_free", "train_on_masks", "prior_method", "prior_folds",
    "prior_weighting", "kg_objective", "kg_schedule", "kg_lambda", "kg_form", "cls_loss", "class_weights",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "processes",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "mixed_precision", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Edits:
    """
    What in a card is its owner's.

    metadata: YAML that no run writes, or that says something else than the run.
    before, after: text above and below what the run writes.
    whole: all of the card, where its owner removed the marks around what the run writes; the others are then empty.
    """

    metadata: dict[str, Any] = field(default_factory=dict)
    before: str = ""
    after: str = ""
    whole: str | None = None


def card_metadata(report: dict[str, Any], config: KGLConfig, licenses: LicenseArguments) -> dict[str, Any]:
    """
    The YAML of a run's card, its figures as the Hub's `model-index`.

    Args:
        report: what `metrics.json` holds.
        config: the guided classifier's.
        licenses: as stated; what is not stated is left out.
    """
    data, backbone = report["settings"]["data"], report["settings"]["model"]["backbone"]
    guided = report["results"]["guided"]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data["hub_dataset"] or data["dataset"],
            dataset_name=data_name(data),
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=round(guided[figure], 4),
            metric_args={"interval_95": [round(end, 4) for end in guided[f"{figure}_interval"]]},
        )
        for figure, (kind, name) in _METRICS.items()
        if figure in guided
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        license=licenses.model_license,
        # A folder's name has no owner before it.
        base_model=backbone if backbone is not None and "/" in backbone else None,
        datasets=[data["hub_dataset"]] if data["hub_dataset"] else None,
        tags=["kgl", "defect-detection", "saliency", "arxiv:2605.17780"],
        model_name=_MODEL_NAME,
        eval_results=results,
    ).to_dict()


def read_edits(text: str, metadata: dict[str, Any], stated: LicenseArguments) -> Edits:
    """
    What in a card is its owner's.

    Args:
        text: the card.
        metadata: the YAML that the run writes ([`card_metadata`]).
        stated: a licence stated now goes before the one in the card.

    Raises:
        InputError: its YAML cannot be read.
    """
    try:
        card = RepoCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"The model card's YAML cannot be read; mend README.md. {' '.join(str(error).split())}"
        ) from error
    generated = _GENERATED.search(card.text)
    if generated is None and card.text.strip():
        return Edits(whole=text)
    there = card.data.to_dict()
    renewed = (*_RENEWED, "license") if stated.model_license is not None else _RENEWED
    own = {name: value for name, value in there.items() if name not in renewed and value != metadata.get(name)}
    if "tags" in own:
        own["tags"] = [tag for tag in own["tags"] if tag not in metadata["tags"]]
    figures = [entry for entry in there.get("model-index", []) if entry["name"] != _MODEL_NAME]
    if figures:
        own["model-index"] = figures
    for name in ("base_model", "datasets"):  # the run has nothing to say where it read local folders
        if name in there and name not in metadata:
            own[name] = there[name]
    if generated is None:
        return Edits(own)
    return Edits(own, card.text[: generated.start()].strip(), card.text[generated.end() :].strip())


def merged_edits(here: Edits, there: Edits, before: Edits) -> Edits:
    """
    The owner's part of two cards that were one before.

    Raises:
        InputError: both were changed, and not alike.
    """
    if here in (before, there):
        return there
    if there == before:
        return here
    raise InputError(
        "The model card was edited both here (final/README.md) and on the Hub: bring the text and the YAML of the one "
        "into the other, so that both say the same, and push again."
    )


def card_text(
    report: dict[str, Any], config: KGLConfig, licenses: LicenseArguments, edits: Edits, repo: str | None = None
) -> str:
    """
    The card, its owner's part kept.

    Args:
        report: what `metrics.json` holds.
        config: the guided classifier's.
        licenses: as stated.
        edits: the owner's part.
        repo: where it is to lie on the Hub, for the lines that load it.
    """
    if edits.whole is not None:
        return edits.whole
    metadata = card_metadata(report, config, licenses)
    lists = {name: metadata.get(name, []) + edits.metadata.get(name, []) for name in ("tags", "model-index")}
    metadata |= edits.metadata | lists
    settings = {name: value for part in report["settings"].values() for name, value in part.items()}
    templates = Environment(
        loader=PackageLoader("kgl", "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filled = templates.get_template("hub_card.md").render(
        report=report,
        rows=headline_rows(report),
        names=list(config.id2label.values()),
        defect_free=config.defect_free_label,
        point=config.operating_point,
        temperature=config.temperature,
        teaches_saliency=teaches_saliency(settings["kg_objective"]),
        data=report["settings"]["data"],
        data_name=data_name(report["settings"]["data"]),
        settings={name: _format_setting(settings[name]) for name in _SETTINGS if settings.get(name) is not None},
        licenses={
            "This classifier": metadata.get("license"),
            "The images it learned from": licenses.data_license,
            "Its pretrained backbone": licenses.backbone_license,
        },
        pretrained=settings["backbone"],
        repo=repo,
    )
    yaml_block = CardData(**metadata).to_yaml()
    body = "\n\n".join(part for part in (edits.before, f"{_BEGIN}\n{filled}\n{_END}", edits.after) if part)
    return f"---\n{yaml_block}\n---\n\n{body}\n"


def _format_setting(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


__all__ = ["Edits", "card_metadata", "card_text", "merged_edits", "read_edits"]
