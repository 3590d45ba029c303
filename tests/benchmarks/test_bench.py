"""Training and evaluation of single arms."""

from dataclasses import replace

import numpy as np
import pytest

from kgl.benchmarks.evidence import bench as bench_module
from kgl.benchmarks.evidence.bench import Bench
from kgl.benchmarks.evidence.frozen import predict_test
from kgl.benchmarks.evidence.plan import ARMS, TEST_ARMS, Arm
from kgl.benchmarks.evidence.priors import CannotShuffleError
from kgl.training.trainer import KnowledgeGuidedTrainer


STEPS = {"plain": 4, "plain, twice as long": 8, "blank mask": 4, "shuffled prior": 8, "guided": 8,
         "guided, paper": 8, "guided, true masks": 4}  # fmt: skip


def test_steps_and_images_of_each_arm(tmp_path, monkeypatch):
    bench, trainings, evaluated = Bench("smoke", 4, 0, False, False, tmp_path), [], []
    train, predict = bench._train, bench._predict

    def spy(trainer_class, model, rows, arm):
        trainings.append((trainer_class, rows["index"]))
        train(trainer_class, model, rows, arm)

    monkeypatch.setattr(bench, "_train", spy)
    monkeypatch.setattr(bench, "_predict", lambda model, rows: (evaluated.append(rows), predict(model, rows))[1])
    assert set(STEPS) == set(TEST_ARMS)
    for name, steps in STEPS.items():
        metrics = bench.run(ARMS[name])
        assert (metrics["steps"], metrics["phases"]) == (steps, steps / 4) and 0 <= metrics["ap"] <= 1
        trainer_class, learned = trainings[-1]
        assert learned == bench.train_images["index"] and evaluated[-1]["index"] == bench.test_images["index"]
        assert (trainer_class is KnowledgeGuidedTrainer) == (ARMS[name].prior is not None)
    assert len(trainings) == len(STEPS)  # the primary is plain training, trained once


def test_arms_of_a_seed_share_weights_images_and_batches(tmp_path):
    """Guidance of weight 0 is plain training, to the last digit."""
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    plain, without_weight = bench.run(ARMS["plain"]), bench.run(Arm("blank", {"kg_lambda": 0.0}))
    cost = {"seconds", "phases", "steps"}
    assert plain.keys() == without_weight.keys()
    for key in plain.keys() - cost:
        assert plain[key] == without_weight[key], key


def test_probabilities_are_averaged_with_those_of_the_default(tmp_path, monkeypatch):
    bench, evaluated = Bench("smoke", 4, 0, False, False, tmp_path), []
    evaluate = bench_module.evaluate_predictions
    monkeypatch.setattr(
        bench_module,
        "evaluate_predictions",
        lambda predictions, *others: (evaluated.append(predictions), evaluate(predictions, *others))[1],
    )
    for arm in ("plain", "default and plain"):
        assert bench.run(ARMS[arm])["steps"] == 4
    bench.frozen.fit_default()
    default = predict_test(bench.frozen)
    plain, mean = evaluated
    assert np.allclose(mean.probabilities, (plain.probabilities + default.probabilities) / 2)
    assert np.array_equal(mean.saliency, default.saliency) and np.array_equal(mean.class_map, plain.class_map)


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
