"""Run the training job as a user does, on tiny images and models."""

import subprocess
import sys
from pathlib import Path

import yaml
from tiny import TRAIN_SCRIPT


SETTINGS = {
    "defect_free_label": "good", "image_height": 32, "image_width": 48, "num_folds": 2, "out_features": ["stage2"],
    "validation_share": 0,
    "backbone_config": {
        "model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
    },
    "num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "epoch",
    "logging_steps": 2, "use_cpu": True,
}  # fmt: skip


def write_recipe(folder: Path, **settings: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | settings))
    return str(path)


def train_command(*arguments: object) -> list[str]:
    return [sys.executable, str(TRAIN_SCRIPT), *map(str, arguments)]


def run_train(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(train_command(*arguments), capture_output=True, text=True)
