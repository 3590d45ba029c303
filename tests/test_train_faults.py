"""Faults in the middle of training: what is saved, what is said, and that the resumed run ends the same."""

import json
import os
import shutil
import signal

import pytest
import torch
from jobs import write_recipe
from safetensors.torch import load_file
from tiny import make_images

from kgl.cli.train import parse
from kgl.errors import InputError, Terminated
from kgl.train import run
from kgl.training.batch_size import halve_batches
from kgl.training.callbacks import ProgressBarCallback
from kgl.training.checkpoints import file_digests, last_good_checkpoint
from kgl.training.run_dir import RunState
from kgl.training.trainer import ClassificationTrainer
from kgl.training.training_args import KGLTrainingArguments


pytestmark = pytest.mark.usefixtures("few_draws")


def weights_of(out):
    return {
        (phase, name): value
        for phase in ("primary", "final")
        for name, value in load_file(out / phase / "model.safetensors").items()
    }


def assert_same_weights(out, other):
    expected, found = weights_of(out), weights_of(other)
    assert all(found[name].equal(value) for name, value in expected.items())


def signal_after_step(monkeypatch, phase, step, number=signal.SIGTERM):
    """Send this process a signal at the end of a step, once."""
    original = ProgressBarCallback.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if args.output_dir.endswith(phase) and state.global_step == step:
            monkeypatch.setattr(ProgressBarCallback, "on_step_end", original)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(ProgressBarCallback, "on_step_end", on_step_end)


@pytest.mark.parametrize("phase", ["primary", "final"])
def test_terminated_within_an_epoch_saves_and_resumes_to_the_same_weights(
    phase, finished_run, tmp_path, monkeypatch, capsys
):
    recipe, out, _ = finished_run
    command = parse([recipe, "--output_dir", str(tmp_path / "out")])
    signal_after_step(monkeypatch, phase, 4)  # three steps are an epoch, after which a checkpoint is written
    with pytest.raises(Terminated):
        run(command)
    assert "stopped by SIGTERM after step 4, which is saved" in capsys.readouterr().out
    assert [one["step"] for one in RunState(tmp_path / "out").checkpoints(phase)] == [3, 4]
    run(command)
    assert f"resumed from {tmp_path / 'out' / phase / 'checkpoint-4'}" in capsys.readouterr().out
    assert_same_weights(out, tmp_path / "out")


def test_terminated_in_the_last_step_takes_no_further_step(finished_run, tmp_path, monkeypatch):
    """Within an epoch: at its end the Trainer stops by itself."""
    recipe, *_ = finished_run
    seven_steps = [recipe, "--max_steps", "7", "--keep_checkpoints", "true", "--output_dir"]
    run(parse([*seven_steps, str(tmp_path / "whole")]))
    signal_after_step(monkeypatch, "primary", 7)
    stopped = parse([*seven_steps, str(tmp_path / "stopped")])
    with pytest.raises(Terminated):
        run(stopped)
    run(stopped)
    assert RunState(tmp_path / "stopped").record("primary")["steps"] == 7
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_damaged_checkpoint_is_found_and_the_one_before_it_taken(finished_run, tmp_path, monkeypatch, capsys):
    recipe, out, _ = finished_run
    command = parse([recipe, "--output_dir", str(tmp_path / "out")])
    signal_after_step(monkeypatch, "final", 7)
    with pytest.raises(Terminated):
        run(command)
    checkpoint = tmp_path / "out" / "final" / "checkpoint-7"
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    run(command)
    printed = capsys.readouterr().out
    assert f"{checkpoint}: model.safetensors is damaged; the checkpoint before it is taken." in printed
    assert f"resumed from {checkpoint.parent / 'checkpoint-6'}" in printed
    assert_same_weights(out, tmp_path / "out")


def write_checkpoints(folder):
    """Write a phase's folder with three listed checkpoints, and one that is not listed."""
    state = RunState(folder)
    for step in (3, 6, 9, 12):
        for name in ("model.safetensors", "global_step3/optimizer.pt"):
            path = folder / "final" / f"checkpoint-{step}" / name
            path.parent.mkdir(parents=True)
            path.write_bytes(bytes(range(step)) * 9)
        if step < 12:
            digests = {} if step == 3 else file_digests(folder / "final" / f"checkpoint-{step}")
            listed = [*state.checkpoints("final"), {"step": step, "seconds": 1.0, "files": digests}]
            state.set_checkpoints("final", listed)
    return state


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("damage", "name", "found"),
    [
        (cut_short, "model.safetensors", "model.safetensors is damaged"),
        (flip_a_bit, "global_step3/optimizer.pt", "global_step3/optimizer.pt is damaged"),
        (os.remove, "model.safetensors", "model.safetensors is missing"),
        (shutil.rmtree, "", "the checkpoint is missing"),
    ],
)
def test_last_good_checkpoint(damage, name, found, tmp_path, capsys):
    state, phase = write_checkpoints(tmp_path), tmp_path / "final"
    assert last_good_checkpoint(state, "final", phase)["step"] == 9
    for step, before in ((9, 6), (6, 3)):
        damage(phase / f"checkpoint-{step}" / name)
        assert last_good_checkpoint(state, "final", phase)["step"] == before
        path = phase / f"checkpoint-{step}"
        assert f"{path}: {found}; the checkpoint before it is taken." in capsys.readouterr().out
    shutil.rmtree(phase / "checkpoint-3")
    assert last_good_checkpoint(state, "final", phase) is None


def test_loss_that_is_not_finite_names_step_images_and_checkpoint(finished_run, tmp_path, monkeypatch):
    recipe, _, _ = finished_run
    original = ClassificationTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        loss, outputs = original(self, *args, **(kwargs | {"return_outputs": True}))
        if self.state.global_step == 4:
            loss = loss * float("inf")
        return (loss, outputs) if kwargs.get("return_outputs") else loss

    monkeypatch.setattr(ClassificationTrainer, "compute_loss", compute_loss)
    with pytest.raises(InputError) as refused:
        run(parse([recipe, "--output_dir", str(tmp_path / "out")]))
    message = str(refused.value)
    assert "Training of the primary classifier diverged: in step 5 the loss of the batch " in message
    assert message.count(".png") == 4 and "is not finite." in message
    assert f"The last good checkpoint is {tmp_path / 'out' / 'primary' / 'checkpoint-3'}." in message
    assert "lower --learning_rate into another --output_dir" in message


def test_weights_that_are_not_finite_are_not_saved(finished_run, tmp_path):
    with pytest.raises(InputError, match=r"diverged: .* not finite\. (The last good|Look)"):
        run(parse([finished_run[0], "--output_dir", str(tmp_path / "out"), "--learning_rate", "1e30"]))
    for checkpoint in RunState(tmp_path / "out").checkpoints("primary"):
        saved = load_file(tmp_path / "out" / "primary" / f"checkpoint-{checkpoint['step']}" / "model.safetensors")
        assert all(value.isfinite().all() for value in saved.values())


def test_classifier_whose_outputs_are_not_finite_is_one_sentence(tmp_path):
    """Weights so large that the validation images' features overflow, though each weight is finite."""
    recipe = write_recipe(tmp_path, data_dir=str(make_images(tmp_path / "images")), validation_share=0.2)
    for rate in ("1e8", "1e18"):
        with pytest.raises(InputError, match=r"finite.* lower --learning_rate"):
            run(parse([recipe, "--output_dir", str(tmp_path / rate), "--learning_rate", rate]))


def test_memory_that_runs_out_halves_the_batch(finished_run, tmp_path, monkeypatch, capsys):
    recipe, _, _ = finished_run
    original, sizes = ClassificationTrainer.training_step, []

    def training_step(self, model, inputs, *args):
        if len(inputs["labels"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        sizes.append((len(inputs["labels"]), self.args.gradient_accumulation_steps))
        return original(self, model, inputs, *args)

    monkeypatch.setattr(ClassificationTrainer, "training_step", training_step)
    report = run(parse([recipe, "--output_dir", str(tmp_path / "out")]))
    assert {accumulated for _, accumulated in sizes} == {2} and sum(size for size, _ in sizes) == 2 * 3 * 9
    printed = capsys.readouterr().out
    assert "memory ran out with 4 images a batch. A step now accumulates the gradients of 2 batches of 2" in printed
    state = json.loads((tmp_path / "out" / "final" / "trainer_state.json").read_text())
    assert state["global_step"] == 9 and report["settings"]["training"]["per_device_train_batch_size"] == 4


def test_halving_ends_in_one_sentence(tmp_path, capsys):
    tried = []

    def train(args):
        tried.append((args.per_device_train_batch_size, args.gradient_accumulation_steps))
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried")

    settings = {"output_dir": str(tmp_path), "use_cpu": True, "gradient_accumulation_steps": 3}
    args = KGLTrainingArguments(per_device_train_batch_size=15, **settings)
    with pytest.raises(InputError, match="_batch_size 1: memory ran out; give smaller images"):
        halve_batches(train, args, "Phase")
    assert tried == [(15, 3), (5, 9), (1, 45)]
    assert "5 batches of 5 images" not in capsys.readouterr().out
    with pytest.raises(InputError, match="_batch_size 8: memory ran out; give a smaller one with more"):
        halve_batches(
            train,
            KGLTrainingArguments(per_device_train_batch_size=8, auto_find_batch_size=False, **settings),
            "Phase",
        )
    assert tried[3:] == [(8, 3)]
    with pytest.raises(RuntimeError, match="something else"):
        halve_batches(lambda args: (_ for _ in ()).throw(RuntimeError("something else")), args, "Phase")


def test_digests_cover_every_file(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("a", "inner/b"):
        (tmp_path / name).write_bytes(b"x")
    digests = file_digests(tmp_path)
    assert sorted(digests) == ["a", "inner/b"] and digests["a"] == digests["inner/b"]
