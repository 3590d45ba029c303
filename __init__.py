"""Surface-defect classifiers that learn from few labels and show where they looked."""

from importlib import import_module
from typing import Any


# Public names and the modules that hold them, imported on first use: `import kgl` stays fast.
_MODULE_OF = {
    "DefectCollator": "training.collator",
    "DefectDetectionPipeline": "pipeline_kgl",
    "KGLConfig": "configuration_kgl",
    "KGLForImageClassification": "modeling_kgl",
    "KGLImageClassifierOutput": "modeling_kgl",
    "KGLTrainingArguments": "training.training_args",
    "KnowledgeGuidedTrainer": "training.trainer",
    "PairedAugmentation": "training.augmentation",
    "PriorArguments": "knowledge.arguments",
    "add_prior_thresholds": "knowledge.thresholds",
    "add_saliency_priors": "knowledge.saliency_priors",
    "compute_saliency": "saliency.compute",
    "load_defect_dataset": "data.loading",
    "open_image": "pipeline_kgl",
    "with_priors": "knowledge.prior_columns",
    "write_saliency_priors": "knowledge.saliency_priors",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
