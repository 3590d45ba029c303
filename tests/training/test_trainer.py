"""The knowledge-guided Trainer: its loss, its logs, and that neither depends on batching."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from tiny import launched, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import kgl
from kgl.errors import InputError
from kgl.knowledge.thresholds import add_prior_thresholds
from kgl.training.arguments import FORMS
from kgl.training.augmentation import PairedAugmentation
from kgl.training.collator import DefectCollator
from kgl.training.losses import CellBalance, focal_loss, saliency_loss
from kgl.training.trainer import KnowledgeGuidedTrainer
from kgl.training.training_args import KGLTrainingArguments


PROCESSOR = ViTImageProcessorPil(size={"height": 32, "width": 32})


def guided_rows(count: int = 8, grid: int = 2) -> Dataset:
    generator = np.random.default_rng(0)
    dataset = Dataset.from_dict(
        {
            "image": [PILImage.fromarray(generator.integers(0, 255, (32, 32), dtype=np.uint8)) for _ in range(count)],
            "label": [index % 3 for index in range(count)],
            "saliency_prior": [
                generator.integers(0, 256, (grid, grid), dtype=np.uint8) * (index % 3 > 0) for index in range(count)
            ],
            "prior_weight": [1.0 if index % 4 else 0.5 for index in range(count)],
        },
        features=Features(
            image=Image(),
            label=ClassLabel(names=["good", "scratch", "pit"]),
            saliency_prior=Array2D((grid, grid), "uint8"),
            prior_weight=Value("float32"),
        ),
    )
    return add_prior_thresholds(dataset)


def guided_trainer(tmp_path: Path, rows: Dataset | None = None, **arguments: object) -> KnowledgeGuidedTrainer:
    settings = {
        "per_device_train_batch_size": 4, "num_train_epochs": 1, "logging_steps": 1, "optim": "sgd",
        "learning_rate": 0.1, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return KnowledgeGuidedTrainer(
        model=tiny_model("convnextv2").train(),  # no batch norm: images are independent
        args=KGLTrainingArguments(output_dir=str(tmp_path), **settings | arguments),
        train_dataset=guided_rows() if rows is None else rows,
        data_collator=DefectCollator(PROCESSOR),
    )


@pytest.mark.parametrize("positive_weight", [None, 3.0])
@pytest.mark.parametrize("form", FORMS)
def test_loss_is_the_weighted_sum_of_its_terms(tmp_path, form, positive_weight):
    trainer = guided_trainer(tmp_path, kg_form=form, kg_positive_weight=positive_weight)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    outputs = trainer.model(batch["pixel_values"], labels=batch["labels"])
    stored = np.asarray(trainer.train_dataset["saliency_prior"], dtype=np.uint8)
    thresholds = trainer.train_dataset["prior_threshold"]
    masks = np.stack([prior > threshold for prior, threshold in zip(stored, thresholds, strict=True)])
    balance = CellBalance.of(masks, trainer.train_dataset["prior_weight"], positive_weight)
    weight = torch.tensor(trainer.train_dataset["prior_weight"][:4])
    loss_kg = saliency_loss(outputs.saliency, torch.from_numpy(masks[:4])[:, None], weight, balance)
    trainer.current_gradient_accumulation_steps = 1
    trainer.state.max_steps, trainer.state.global_step = 10, 5  # lambda has fallen to half
    share = 0.85 if form == "convex" else 1
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), 0.15 * loss_kg + share * outputs.loss)


def test_focal_and_balanced_classification(tmp_path):
    rows = guided_rows().select([0, 1, 2, 4, 7])  # labels 0, 1, 2, 1, 1
    trainer = guided_trainer(tmp_path, rows, cls_loss="focal", class_weights="balanced", kg_lambda=0.0)
    batch = trainer.data_collator([rows[index] for index in range(5)])
    logits = trainer.model(batch["pixel_values"]).logits
    expected = focal_loss(logits, batch["labels"], 2.0, torch.tensor([5 / 3, 5 / 9, 5 / 3]))
    trainer.current_gradient_accumulation_steps = 1
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), expected)


def test_label_smoothing_applies_to_the_classification_loss(tmp_path):
    smooth, plain = guided_trainer(tmp_path, label_smoothing_factor=0.2), guided_trainer(tmp_path)
    batch = plain.data_collator([plain.train_dataset[index] for index in range(4)])
    outputs = plain.model(batch["pixel_values"])
    expected = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"], label_smoothing=0.2)
    smooth.model.eval()
    plain.model.eval()
    torch.testing.assert_close(smooth.compute_loss(smooth.model, dict(batch)), expected)
    assert plain.compute_loss(plain.model, dict(batch)) != expected


def test_evaluation_has_no_augmentation(tmp_path):
    trainer = guided_trainer(tmp_path)
    trainer.data_collator = DefectCollator(PROCESSOR, PairedAugmentation())
    first, second = (next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))["pixel_values"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(next(iter(trainer.get_test_dataloader(trainer.train_dataset)))["pixel_values"], first)
    assert trainer.data_collator.augmentation is not None


def test_mixed_precision(tmp_path):
    logs = []
    for bf16 in (True, False):
        trainer = guided_trainer(tmp_path, bf16=bf16, num_train_epochs=2)
        trainer.train()
        assert trainer.accelerator.mixed_precision == ("bf16" if bf16 else "no")
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
        logs.append(trainer.state.log_history[-2])
    half, full = logs
    for term in ("loss", "loss_kg", "loss_cls"):
        assert half[term] != full[term] and half[term] == pytest.approx(full[term], rel=0.02)


def test_evaluation_loss_is_the_classification_loss(tmp_path):
    trainer = guided_trainer(tmp_path)
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(8)])
    with torch.no_grad():
        expected = trainer.model(batch["pixel_values"], labels=batch["labels"]).loss.item()
    metrics = trainer.evaluate(trainer.train_dataset.select_columns(["image", "label"]))
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_logged_terms_sum_to_the_logged_loss(tmp_path):
    trainer = guided_trainer(
        tmp_path, kg_form="convex", kg_lambda=0.9, num_train_epochs=3,
        gradient_accumulation_steps=2, per_device_train_batch_size=2,
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss_kg" in entry]
    assert len(logs) == trainer.state.max_steps == 6
    for entry in logs:
        lambda_ = entry["kg_lambda"]
        assert entry["loss"] == pytest.approx(lambda_ * entry["loss_kg"] + (1 - lambda_) * entry["loss_cls"], rel=1e-4)
    assert [entry["kg_lambda"] for entry in logs] == pytest.approx([0.9 * (1 - step / 6) for step in range(6)])


def test_logs_are_averages_over_the_window(tmp_path):
    every, windowed = guided_trainer(tmp_path, num_train_epochs=2), guided_trainer(
        tmp_path, num_train_epochs=2, logging_steps=4
    )  # fmt: skip
    every.train()
    windowed.train()
    for term in ("loss", "loss_kg", "loss_cls", "kg_lambda"):
        each = [entry[term] for entry in every.state.log_history if "loss_kg" in entry]
        (window,) = [entry[term] for entry in windowed.state.log_history if "loss_kg" in entry]
        assert len(each) == 4 and window == pytest.approx(np.mean(each), rel=1e-4)


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    """The same weights after training on 8 images at once or 2 at a time, with uneven priors."""
    at_once = guided_trainer(tmp_path, per_device_train_batch_size=8, num_train_epochs=2)
    in_parts = guided_trainer(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_train_epochs=2
    )
    at_once.train()
    in_parts.train()
    start = tiny_model("convnextv2").state_dict()
    for name, weights in at_once.model.state_dict().items():
        torch.testing.assert_close(weights, in_parts.model.state_dict()[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(weights, start[name]) for name, weights in at_once.model.state_dict().items())


IN_EACH_PROCESS = """
import json, os, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from pathlib import Path
from test_trainer import guided_trainer
trainer = guided_trainer(
    Path(sys.argv[2]), per_device_train_batch_size=int(sys.argv[3]), num_train_epochs=2, learning_rate=0.05,
    cls_loss="focal", class_weights="balanced",
)
trainer.train()
if trainer.is_world_process_zero():
    trainer.save_model(sys.argv[2])
    logs = [entry for entry in trainer.state.log_history if "loss_kg" in entry]
    Path(sys.argv[2], "logs.json").write_text(json.dumps(logs))
trainer.accelerator.end_training()
"""


def test_two_processes_equal_one(tmp_path):
    from safetensors.torch import load_file

    script = tmp_path / "job.py"
    script.write_text(IN_EACH_PROCESS)
    results = {}
    for processes, batch_size in ((1, 8), (2, 4)):
        folder = tmp_path / str(processes)
        command = [*launched(processes), str(script), str(Path(__file__).parent), str(folder), str(batch_size)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results[processes] = load_file(folder / "model.safetensors"), json.loads((folder / "logs.json").read_text())
    one, two = results[1], results[2]
    for name, weights in one[0].items():
        torch.testing.assert_close(weights, two[0][name], rtol=1e-4, atol=1e-6)
    for entry, twin in zip(one[1], two[1], strict=True):
        for term in ("loss_kg", "loss_cls", "kg_lambda"):
            assert entry[term] == pytest.approx(twin[term], rel=1e-3)


def test_guidance_trains_the_saliency_head(tmp_path):
    rows = guided_rows(12)
    trainer = guided_trainer(tmp_path, rows, num_train_epochs=30, kg_form="convex", kg_lambda=0.9, learning_rate=0.5)
    trainer.train()
    logs = [entry["loss_kg"] for entry in trainer.state.log_history if "loss_kg" in entry]
    assert np.mean(logs[-6:]) < 0.85 * np.mean(logs[:3])


def test_dataset_without_priors_is_refused(tmp_path):
    rows = guided_rows()
    with pytest.raises(InputError, match=r"no column saliency_prior and no column .*kgl\.add_saliency_priors"):
        guided_trainer(tmp_path, rows.select_columns(["image", "label"]))
    with pytest.raises(InputError, match=r"no column prior_threshold: kgl\.add_prior_thresholds\(dataset\) adds it"):
        guided_trainer(tmp_path, rows.remove_columns("prior_threshold"))
    guided_trainer(tmp_path, kgl.add_prior_thresholds(rows.remove_columns("prior_threshold")))


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(KGLTrainingArguments, "n_gpu", 2)
    with pytest.raises(InputError, match="2 GPUs in one process: use accelerate launch"):
        guided_trainer(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kg_form": "convex", "kg_lambda": 1.5}, "--kg_lambda 1.5"),
        ({"kg_lambda": -1, "kg_form": "additive"}, "--kg_lambda -1"),
        ({"kg_form": "product"}, "--kg_form product: choose one of additive, convex"),
        ({"kg_positive_weight": 0}, "--kg_positive_weight 0"),
        ({"cls_loss": "hinge"}, "--cls_loss hinge: choose one of cross_entropy, focal"),
        ({"cls_loss": "focal", "label_smoothing_factor": 0.1}, "--label_smoothing_factor goes with"),
        ({"class_weights": "rare"}, "--class_weights rare: choose one of none, balanced"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        KGLTrainingArguments(output_dir=str(tmp_path), **wrong)


def test_model_card_is_not_overwritten(tmp_path):
    (tmp_path / "README.md").write_text("my own words")
    trainer = guided_trainer(tmp_path)
    trainer.create_model_card()
    assert (tmp_path / "README.md").read_text() == "my own words"
