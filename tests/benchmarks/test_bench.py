"""Training and evaluation of single arms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import set_seed

from kgl.benchmarks.evidence import bench as bench_module
from kgl.benchmarks.evidence.bench import RECIPE, Bench
from kgl.benchmarks.evidence.plan import ARMS, Arm
from kgl.benchmarks.evidence.priors import CannotShuffleError
from kgl.benchmarks.evidence.task_data import new_model


STEPS = {"plain": 4, "plain, twice as long": 8, "blank mask": 4, "self-distillation": 8, "guided": 8,
         "guided, true masks": 4, "guided, two rounds": 12, "guided, averaged primary": 8,
         "guided, drop wrong": 12, "guided, short primary": 6, "plain, early-stopped": 4}  # fmt: skip


def test_steps_images_and_teacher_of_each_arm(tmp_path, monkeypatch):
    bench, trainings, evaluated, guides = Bench("smoke", 4, 0, False, False, tmp_path), [], [], []
    train, batches, with_priors = bench._train, bench._batches, bench._with_priors

    def spy(trainer_class, model, rows, arm, callbacks=None, teacher=None):
        trainings.append((model, set(rows["index"]), teacher))
        train(trainer_class, model, rows, arm, callbacks, teacher)

    monkeypatch.setattr(bench, "_train", spy)
    monkeypatch.setattr(bench, "_batches", lambda rows: (evaluated.append(rows), batches(rows))[1])
    monkeypatch.setattr(
        bench, "_with_priors", lambda arm, primary: (guides.append(primary), with_priors(arm, primary))[1]
    )
    everything, last = set(bench.train_images["index"]), {}
    for name, steps in STEPS.items():
        evaluated.clear()
        metrics = bench.run(ARMS[name])
        assert (metrics["steps"], metrics["phases"]) == (steps, steps / 4) and 0 <= metrics["ap"] <= 1
        last[name] = trainings[-1]
        if name == "guided, two rounds":
            rounds, between = guides[-2:], trainings[-2][0]
        assert name == "plain, early-stopped" or last[name][1] == everything
    primary = last["plain"][0]
    assert last["self-distillation"][2] is primary
    assert rounds[0] is primary and rounds[1] is between
    learned, stopping = last["plain, early-stopped"][1], set(evaluated[0]["index"])
    assert not learned & stopping and learned | stopping == everything
    assert evaluated[-1]["index"] == bench.test_images["index"]


def test_arms_of_a_seed_share_weights_images_and_batches(tmp_path):
    """Guidance of weight 0 is plain training, to the last digit."""
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    plain, zero_weight = bench.run(ARMS["plain"]), bench.run(Arm("zero_weight"))
    cost = {"seconds", "phases", "steps"}
    assert plain.keys() == zero_weight.keys()
    assert {key: plain[key] for key in plain.keys() - cost} == {key: zero_weight[key] for key in plain.keys() - cost}


def test_detached_head_leaves_the_features_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPE, "weight_decay", 0.0)
    monkeypatch.setitem(RECIPE, "warmup_steps", 0)
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    bench.task = replace(bench.task, steps=1)
    map_loss_alone = {"kg_form": "convex", "kg_lambda": 1.0}  # in the first step
    for detached in (True, False):
        set_seed(0)
        before = dict(new_model("smoke", {}).named_parameters())
        arm = Arm("masks", map_loss_alone, detached_head=detached)
        after = dict(bench._fit(arm, None).named_parameters())
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert moved == ({"saliency_head"} if detached else {"saliency_head", "backbone"})


def test_search_images_are_never_tested(tmp_path):
    searched, tested = Bench("smoke", 4, 3, True, False, tmp_path), Bench("smoke", 4, 5, False, False, tmp_path)
    assert not set(searched.test_images["digest"]) & set(tested.test_images["digest"])
    assert not set(searched.train_images["digest"]) & set(tested.test_images["digest"])
    assert not set(tested.train_images["group"]) & set(tested.test_images["group"])


def test_seed_chooses_the_test_fold_without_a_fixed_one(tmp_path, monkeypatch):
    task = replace(bench_module.TASKS["smoke"], fixed_test_fold=False)
    monkeypatch.setitem(bench_module.TASKS, "smoke", task)
    folds = [set(Bench("smoke", 4, seed, False, False, tmp_path).test_images["fold"]) for seed in range(4)]
    assert folds == [{0}, {1}, {2}, {0}]


def test_budget_above_the_images_of_every_class_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--budgets 4000: no class of smoke has more than"):
        Bench("smoke", 4000, 0, False, False, tmp_path)


def test_shuffled_arm_fails_before_training(tmp_path, monkeypatch):
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    groups = ["same"] * len(bench.train_images)
    bench.train_images = bench.train_images.remove_columns("group").add_column("group", groups)
    monkeypatch.setattr(bench, "_train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(CannotShuffleError):
        bench.run(ARMS["shuffled prior"])


def test_budget_is_per_defect_class(tmp_path):
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    names = bench.train_images.features["label"].names
    counts = np.bincount(bench.train_images["label"], minlength=len(names))
    assert dict(zip(names, counts, strict=True)) == {name: 16 if name == "good" else 4 for name in names}
