"""The evidence bench on a task of seconds: two arms, one seed, 32 px."""

import json
import subprocess
import sys
import unittest.mock
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import evidence
import evidence_curves
import evidence_differences
import evidence_tables
import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, Value, concatenate_datasets
from evidence import ARMS, SEARCHED, Arm, Bench, _identity, main
from evidence_curves import FREE
from evidence_differences import differences
from evidence_tables import (
    LADDER,
    compared_table,
    goal_table,
    interval,
    levels_table,
    maps_table,
    means_table,
    overall_table,
    put_between,
    read,
    told,
)
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image
from scipy import stats

from kgl.data.images import without_decoding
from kgl.data.masks import mask_to_array, mask_to_grid
from kgl.training.training_args import KGLTrainingArguments


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_two_arms_once_and_not_again(tmp_path):
    def bench(*arms):
        command = [sys.executable, str(BENCHMARKS / "evidence.py"), "--tasks", "smoke", "--budgets", "4",
                   "--seeds", "0",
                   "--output", str(tmp_path / "runs.jsonl"), "--cache_dir", str(tmp_path / "cache"),
                   "--arms", *arms]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]

    first = bench("plain")
    both = bench("plain", "guided")
    assert [line["arm"] for line in both] == ["plain", "guided"] and both[0] == first[0]
    for line in both:
        assert (line["dataset"], line["budget"], line["seed"], line["split"]) == ("smoke", 4, 0, "test")
        assert line["images"] == 4 * 3 + 16 and line["judged"] == 32
        maps = {"map_ap", "gradcam_ap", "saliency_ap", "saliency_area90"}
        assert {"ap", "accuracy", "steps", *maps} <= set(line["figures"])
    assert [line["figures"]["phases"] for line in both] == [1, 2]
    assert both[0]["figures"]["saliency_ap"] != both[1]["figures"]["saliency_ap"]
    tables = subprocess.run(
        [sys.executable, str(BENCHMARKS / "evidence_tables.py"), str(tmp_path / "runs.jsonl")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "### smoke, 4 a class" in tables and "| less plain | seeds |" in tables
    difference = both[1]["figures"]["ap"] - both[0]["figures"]["ap"]
    assert f"| guided | 1 | {difference:+.3f} | " in tables  # one seed: no interval
    assert " | 2 | 8 |" in tables and " | 1 | 4 |" in tables  # phases and steps


def test_intervals_are_student_s():
    values = np.array([0.1, 0.2, 0.4, 0.1, 0.3])
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert interval(values) == pytest.approx((low, high))
    assert told(values, "+") == f"**+0.220 ({low:+.3f} .. {high:+.3f})**"
    assert told(-values - 0.3) == f"-0.520 ({-high - 0.3:.3f} .. {-low - 0.3:.3f})"
    assert interval(values[:2]) is None
    assert told(values / 1e4, "+") == "+0.000 (+0.000 .. +0.000)"  # clear of zero, and not worth a word


def test_maps_are_compared_with_the_better_one_that_plain_training_has(tmp_path):
    def line(arm, seed, **more):
        figures = {"map_ap": 0.2, "saliency_ap": 0.3} | more
        return json.dumps({"arm": arm, "dataset": "tiles", "budget": 8, "seed": seed, "figures": figures})

    def rows(lines):
        guided = [line("guided", seed, saliency_image_ap=0.9) for seed in (0, 1, 2)]  # no plain one of seed 2
        (tmp_path / "runs.jsonl").write_text("\n".join([*lines, *guided]))
        return [row for row in maps_table(read(tmp_path / "runs.jsonl")).splitlines() if "tiles" in row]

    assert rows([]) == []
    maps = "| tiles | 8 | 2 | 0.300 |"
    taken = {"gradcam_ap": 0.24, "map_image_ap": 0.6, "gradcam_image_ap": 0.5, "map_pointing": 0.4}
    plain = [line("plain", seed, **taken) for seed in (0, 1)]
    assert rows(plain) == [f"{maps} +0.060 | 1.25 | 0.900 | +0.300 | 1.50 |  |  |  |"]
    weaker = [line("plain", seed, gradcam_ap=0.1) for seed in (0, 1)]
    assert rows(weaker) == [f"{maps} +0.100 | 1.50 |  |  |  |  |  |  |"]
    assert rows([*weaker[:1], line("plain", 1)]) == ["| tiles | 8 | 2 |" + "  |" * 9]  # one may have been better


def test_the_goal_is_reached_where_all_of_it_is():
    def runs(lead, accuracy, heat):
        base = {"map_ap": 0.1, "gradcam_ap": 0.2}
        plain = {seed: base | {"ap": 0.5, "accuracy": 0.9} for seed in range(5)}
        blank = {seed: base | {"ap": 0.5 + 0.1 * (seed - 2), "accuracy": 0.9} for seed in range(5)}
        ours = {"accuracy": 0.9 + accuracy, "saliency_ap": heat}
        guided = {seed: ours | {"ap": 0.5 + lead + 0.001 * seed} for seed in range(5)}
        return {"guided": guided, "plain": plain, "plain, twice as long": plain, "blank mask": blank}

    places = {("all", 8): runs(0.4, 0.1, 0.31), ("neu_det_long", 16): runs(0.01, 0, 0.29),
              ("neu_det_long", 8): runs(0.4, 0, 0.31), ("neu_det_long", 4): runs(0.4, 0.1, 0.4)}  # fmt: skip
    del places["neu_det_long", 16]["blank mask"][4]
    table = goal_table(places).splitlines()
    assert [row.split(" | ")[:2] for row in table[2:-2]] == [
        ["| neu_det_long", "8"],
        ["| neu_det_long", "16"],
        ["| all", "8"],
    ]
    assert [row.split(" | ")[-1] for row in table[2:-2]] == ["1.55 |", "1.45 |", "1.55 |"]
    assert table[3].count("), 4 seeds |") == 2  # of the blank mask
    assert table[-1].endswith(
        ": of the 2 places of the goal, AP at 1, accuracy at 0, the map at 1; "
        "of 1 other places, AP at 1, accuracy at 1, the map at 1."
    )


def test_time_is_over_plain_training_s_of_the_seed():
    def runs(phases, *seconds):
        return {seed: {"phases": phases, "steps": 4, "seconds": one} for seed, one in enumerate(seconds)}

    arms = {"plain": runs(1, 1.0, 2.0, 4.0, 1.0), "guided": runs(2, 1.5, 2.2, 4.0), "few": runs(1, 1.0, 2.0)}
    rows = means_table(arms, {}, costs=True).splitlines()[2:]
    assert rows == ["| plain | 4 | 1 | 4 | 1.00 |", "| guided | 3 | 2 | 4 | 1.10 |", "| few | 2 | 1 | 4 |  |"]


def test_controls_are_compared_over_the_seeds_both_have():
    figures = [{"ap": value} for value in (0.5, 0.6, 0.7, 0.9)]
    shifted = {seed: {"ap": figures[seed]["ap"] - 0.1 * (seed + 1)} for seed in (0, 1, 2)}
    runs = {"guided": dict(enumerate(figures)), "plain": shifted, "shuffled prior": {3: {"ap": 0.1}}}
    runs["guided, true masks"] = {seed: {"saliency_ap": 0.9} for seed in range(4)}  # its AP was never taken
    runs |= {"guided, convex": dict(enumerate(figures)), "blank mask": shifted, "blank mask, convex": runs["guided"]}
    arms = ("guided", "guided, convex")
    table = compared_table({("tiles", 8): runs, ("tiles", 4): {"guided": {0: {"ap": 0.5}}}}, "ap", LADDER, arms)
    table = table.splitlines()
    assert table[0].startswith("| dataset | a class | arm | seeds | figure | less plain |") and len(table) == 4
    own, lead = told(np.array([0.5, 0.6, 0.7, 0.9])), told(np.array([0.1, 0.2, 0.3]), "+") + ", 3 seeds"
    assert table[2] == f"| tiles | 8 | guided | 4 | {own} | {lead} |  | {lead} |  |  |"
    none = told(np.zeros(4), "+")  # the blank mask under the same schedule
    assert table[3] == f"| tiles | 8 | guided, convex | 4 | {own} | {lead} |  | {none} |  |  |"


def test_levels_are_means_of_what_all_seeds_have():
    figures = {"ap": 0.5, "accuracy": 0.9, "balanced_accuracy": 0.8, "recall_at_false_alarm_rate": 0.25}
    plain = {0: figures, 1: figures | {"ap": 0.6}}
    guided = {0: figures, 1: {name: figures[name] for name in ("ap", "accuracy", "balanced_accuracy")}}
    table = levels_table({("tiles_long", 8): {"plain": plain, "guided": guided}, ("tiles_long", 4): {"plain": plain}})
    assert table.splitlines()[2:] == ["| tiles | 8 | 0.550, 0.500 | 0.900, 0.900 | 0.800, 0.800 |  |"]


def test_overall_a_seed_is_one_value():
    def runs(*aps):
        figures = ("ap", "auroc", "accuracy", "balanced_accuracy")
        return {seed: dict.fromkeys(figures, ap) for seed, ap in enumerate(aps)}

    tiles = {"guided": runs(0.5, 0.6, 0.7, 0.8, 0.9, 0.0), "plain": runs(0.4, 0.4, 0.4, 0.4, 0.4)}
    steel = {"guided": runs(0.5, 0.5, 0.5, 0.5, 0.5), "plain": runs(0.5, 0.5, 0.5, 0.5, 0.5, 0.5)}
    few = {"guided": runs(0.9, 0.9), "plain": runs(0.1, 0.1), "blank mask": runs(0.1, 0.1)}
    places = {("magnetic_tile", 4): tiles, ("magnetic_tile", 8): {"plain": runs(0.1)}, ("steel", 8): steel,
              ("few", 4): few}  # fmt: skip
    table = overall_table(places, ("everywhere", "8 and 16", "goal", "not tiles")).splitlines()
    lead = told(np.array([0.05, 0.1, 0.15, 0.2, 0.25]), "+")
    none = told(np.zeros(5), "+")
    wanted = {"everywhere | 2": lead, "8 and 16 | 1": none, "not tiles | 1": none}
    assert table[2:] == [f"| plain | {where} | 5 |" + f" {value} |" * 4 for where, value in wanted.items()]


def test_differences_are_drawn_over_the_seeds_both_have(tmp_path, monkeypatch):
    guided = {seed: {"ap": 0.1 * seed, "accuracy": 0.5, "saliency_image_ap": 0.4} for seed in range(4)}
    plain = {seed: {"ap": 0.0, "gradcam_image_ap": 0.1 * seed} for seed in range(3)} | {3: {"ap": 0.0}}
    blank = {seed: {"ap": 0.05 * seed, "accuracy": 0.5} for seed in range(1, 4)}
    runs = {"guided": guided, "plain": plain, "blank mask": blank, "shuffled prior": {0: {"ap": 0.3}}}
    assert differences(runs, "guided", "ap", "blank mask") == pytest.approx([0.05, 0.1, 0.15])
    assert differences(runs, "guided", "saliency_image_ap", FREE) == pytest.approx([0.4, 0.3, 0.2])
    assert not len(differences(runs, "guided", "saliency_image_ap", "guided, true masks"))

    lines = [
        json.dumps({"arm": arm, "dataset": "tiles", "budget": 8, "seed": seed, "figures": figures})
        for arm, seeds in runs.items()
        for seed, figures in seeds.items()
    ]
    (tmp_path / "evidence.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(evidence_differences, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["evidence_differences.py", "--output", str(tmp_path / "differences.png")])
    drawn = []
    errorbar = Axes.errorbar
    monkeypatch.setattr(
        Axes,
        "errorbar",
        lambda axes, x, y, **how: (drawn.append((how["label"], round(float(x), 3))), errorbar(axes, x, y, **how)),
    )
    evidence_differences.main()
    assert drawn == [("blank mask", 0.1), ("blank mask", 0), (FREE, 0.3)]  # one seed of the shuffled prior is none
    assert Image.open(tmp_path / "differences.png").width > 300


def test_pages_get_the_blocks_they_have_marks_for(tmp_path, monkeypatch):
    line = {
        "arm": "plain",
        "dataset": "tiles",
        "budget": 8,
        "seed": 0,
        "figures": {"ap": 0.5, "phases": 1, "steps": 4, "seconds": 3.0},
    }
    (tmp_path / "runs").write_text(json.dumps(line))
    all_runs, short, neither = tmp_path / "all.md", tmp_path / "short.md", tmp_path / "neither.md"
    all_runs.write_text("<!-- runs -->\n<!-- /runs -->\n")
    short.write_text("<!-- runs maps -->\n<!-- /runs maps -->\nabove\n")
    neither.write_text("text\n")
    arguments = ["evidence_tables.py", str(tmp_path / "runs"), "--against", "plain", "--into"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(all_runs), str(short)])
    evidence_tables.main()
    assert "| plain | 1 | 0.500 | 1 | 4 |  |" in all_runs.read_text() and "ratio" not in all_runs.read_text()
    assert "| H px AP |" in short.read_text() and short.read_text().endswith("above\n")
    monkeypatch.setattr(sys, "argv", [*arguments, str(neither)])
    with pytest.raises(SystemExit):
        evidence_tables.main()
    assert neither.read_text() == "text\n"


def test_tables_take_the_place_of_the_old_ones():
    page = "text\n<!-- runs -->\n| old |\n<!-- /runs -->\nmore\n"
    assert put_between(page, "runs", "| new |") == "text\n<!-- runs -->\n\n| new |\n\n<!-- /runs -->\nmore\n"
    with pytest.raises(ValueError, match="no <!-- others -->"):
        put_between(page, "others", "| new |")


def test_an_arm_trains_as_long_on_what_and_by_whom_its_name_says(tmp_path, monkeypatch):
    bench, trained, judged, guides = Bench("smoke", 4, 0, False, False, tmp_path), [], [], []
    optimise, predict, with_priors = bench._optimise, bench._predict, bench._with_priors

    def spy(kind, model, rows, arm, callbacks=None, teacher=None):
        trained.append((model, set(rows["index"]), teacher))
        optimise(kind, model, rows, arm, callbacks, teacher)

    monkeypatch.setattr(bench, "_optimise", spy)
    monkeypatch.setattr(bench, "_predict", lambda *given, **how: (judged.append(given[1]), predict(*given, **how))[1])
    monkeypatch.setattr(
        bench, "_with_priors", lambda arm, primary: (guides.append(primary), with_priors(arm, primary))[1]
    )
    steps = {"plain": 4, "plain, twice as long": 8, "blank mask": 4, "self-distillation": 8, "guided": 8,
             "guided, true masks": 4, "guided, two rounds": 12, "guided, averaged primary": 8, "guided, attention": 8,
             "guided, drop wrong": 12, "guided, short primary": 6, "plain, early-stopped": 4}  # fmt: skip
    everything, taught = set(bench.train["index"]), {}
    for name, wanted in steps.items():
        judged.clear()
        figures = bench.run((ARMS | SEARCHED)[name])
        assert (figures["steps"], figures["phases"]) == (wanted, wanted / 4) and 0 <= figures["ap"] <= 1
        taught[name] = trained[-1]
        if name == "guided, two rounds":
            rounds, between = guides[-2:], trained[-2][0]
        assert name == "plain, early-stopped" or taught[name][1] == everything
    primary = taught["plain"][0]
    assert taught["self-distillation"][2] is primary
    assert rounds[0] is primary and rounds[1] is between
    learned, stopping = taught["plain, early-stopped"][1], set(judged[0]["index"])
    assert not learned & stopping and learned | stopping == everything
    assert judged[-1]["index"] == bench.judged["index"]


def test_every_kind_of_prior(tmp_path):
    """In one process; what an arm is taught is what its name says."""
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    names, good = bench.train.features["label"].names, "good"
    labels = np.asarray(bench.train["label"])
    defective = np.array([names[label] != good for label in labels])
    assert not set(bench.train["group"]) & set(bench.judged["group"])
    arms = ARMS | SEARCHED
    primary = bench._primary("all", bench.train, ARMS["guided"])

    def priors(arm):
        rows = bench._with_priors(arms[arm], primary)
        assert rows["index"] == bench.train["index"]
        return np.asarray(rows["saliency_prior"]), np.asarray(rows["prior_weight"])

    own, weight = priors("guided")
    assert own[defective].max(axis=(1, 2)).min() == 255 and own[~defective].max() == 0 and (weight == 1).all()
    for name, weighs in (("blank mask", 1), ("warm-up alone", 0)):
        empty, weight = priors(name)
        assert empty.max() == 0 and (weight == weighs).all()
    shuffled, _ = priors("shuffled prior")
    for label in set(labels[defective]):
        of_class = np.flatnonzero(labels == label)
        assert sorted(map(bytes, own[of_class])) == sorted(map(bytes, shuffled[of_class]))
    assert not any(np.array_equal(one, other) for one, other in zip(own[defective], shuffled[defective], strict=True))
    masks, weight = priors("guided, true masks")
    grid = own.shape[1:]
    truth = [mask_to_grid(mask_to_array(mask, (32, 32))[None], grid)[0] for mask in bench.train["mask"]]
    assert np.array_equal(masks > 0, np.stack(truth)) and (weight == 1).all()
    five, _ = priors("guided, 5 masks")
    known = [at for at in np.flatnonzero(defective) if np.array_equal(five[at], masks[at])]
    assert len(known) == 5 and set(labels[known]) == set(labels[defective])  # all classes have some
    one, _ = priors("guided, 1 mask")
    assert {at for at in np.flatnonzero(defective) if np.array_equal(one[at], masks[at])} < set(known)


def test_arms_of_a_seed_have_the_same_weights_images_and_batches(tmp_path):
    """Guidance that weighs nothing is plain training, to the last digit."""
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    plain, nothing = bench.run(ARMS["plain"]), bench.run(Arm("nothing"))
    cost = ("seconds", "phases", "steps")
    assert {key: plain[key] for key in plain if key not in cost} == {
        key: nothing[key] for key in nothing if key not in cost
    }


def test_a_head_alone_leaves_the_features_to_classification(tmp_path, monkeypatch):
    monkeypatch.setitem(evidence.RECIPE, "weight_decay", 0.0)
    monkeypatch.setitem(evidence.RECIPE, "warmup_steps", 0)
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    bench.task = replace(bench.task, steps=1)
    map_loss_alone = {"kg_form": "convex", "kg_lambda": 1.0}  # in the first step
    for detached in (True, False):
        evidence.set_seed(0)
        before = dict(evidence.new_model("smoke", {}).named_parameters())
        arm = Arm("masks", map_loss_alone, detached=detached)
        after = dict(bench._fit(arm, None).named_parameters())
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert moved == ({"saliency_head"} if detached else {"saliency_head", "backbone"})


def test_controls_compute_what_they_are_named_after():
    one, other = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(one.weight)
    average = evidence._Average()
    for value in (1.0, 2.0, 3.0):
        torch.nn.init.constant_(one.weight, value)
        average.on_step_end(None, None, None, model=one)
    average.on_train_end(None, None, None, model=one)
    assert one.weight.item() == pytest.approx(0.98 * (0.98 * 1 + 0.02 * 2) + 0.02 * 3)

    scores = iter([0.1, 0.7, 0.7, 0.2])
    best = evidence._KeepBest(lambda: next(scores))
    for step in range(1, 21):  # judged at 5, 10, 15 and 20 of 50
        torch.nn.init.constant_(other.weight, step)
        best.on_step_end(None, SimpleNamespace(global_step=step, max_steps=50), None, model=other)
    best.on_train_end(None, None, None, model=other)
    assert other.weight.item() == 10  # the first of equals

    labels, groups = np.array([0, 0, 0, 1, 1]), np.array(["a", "a", "b", "c", "d"])
    with pytest.raises(evidence.CannotShuffle, match="More than half"):
        evidence.images_of_other_groups(labels, groups)
    labels, groups = np.array([0, 0, 0, 0, 1, 1]), np.array(["a", "b", "a", "b", "c", "d"])
    picked = evidence.images_of_other_groups(labels, groups)
    assert sorted(picked) == list(range(6)) and (labels[picked] == labels).all() and (groups[picked] != groups).all()


def test_distillation_is_half_labels_half_the_teacher(tmp_path):
    student, teacher = torch.tensor([[2.0, 0.0], [0.5, 1.0]]), torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    labels = torch.tensor([0, 0])
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    model = evidence.new_model("smoke", {})
    arguments = KGLTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    trainer = evidence._Distilled(model=model, args=arguments, train_dataset=bench.train)
    outputs = SimpleNamespace(logits=student)
    told = torch.nn.functional.cross_entropy(student, labels)
    trainer.teacher = lambda pixel_values: SimpleNamespace(logits=teacher)
    wanted, said = (teacher / 2).softmax(1), (student / 2).softmax(1)
    divergence = (wanted * (wanted / said).log()).sum(1).mean()
    with unittest.mock.patch.object(evidence.ClassificationTrainer, "compute_loss", return_value=(told, outputs)):
        loss = trainer.compute_loss(model, {"pixel_values": None})
    assert loss.item() == pytest.approx((0.5 * told + 0.5 * 4 * divergence).item())


def test_good_or_defect_has_the_folds_of_all_classes(monkeypatch):
    monkeypatch.setitem(evidence.TASKS, "smoke defect", replace(evidence.TASKS["smoke"], defect_or_not=True))
    all_classes, two = evidence.images_of("smoke"), evidence.images_of("smoke defect")
    assert two.features["label"].names == ["good", "defect"] and set(two["label"]) == {0, 1}
    assert all_classes["digest"][:] == two["digest"][:] and all_classes["fold"][:] == two["fold"][:]
    assert set(two["fold"]) == {0, 1, 2}


def test_the_search_never_sees_what_is_tested(tmp_path):
    searched, tested = Bench("smoke", 4, 3, True, False, tmp_path), Bench("smoke", 4, 5, False, False, tmp_path)
    assert not set(searched.judged["digest"]) & set(tested.judged["digest"])
    assert not set(searched.train["digest"]) & set(tested.judged["digest"])


def test_there_is_no_search_where_every_fold_is_tested(tmp_path, monkeypatch, capsys):
    arguments = ["--tasks", "neu_det_long", "--search", "--output", str(tmp_path / "runs.jsonl")]
    monkeypatch.setattr(sys, "argv", ["evidence.py", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert "no fold that no seed is tested on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--budgets", "0"], "--budgets 0: it takes"), (["--part", "2"], "--part"), (["--part", "2/2"], "--part")],
)
def test_what_cannot_be_run_is_named(arguments, message, tmp_path, monkeypatch, capsys):
    places = ["--output", str(tmp_path / "runs.jsonl"), "--cache_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--tasks", "smoke", *places, *arguments])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err


def test_a_budget_that_there_are_no_images_for_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="--budgets 4000: no class of smoke has more than"):
        Bench("smoke", 4000, 0, False, False, tmp_path)


def test_features_and_runs_know_their_images(tmp_path, monkeypatch):
    """A change in any of them makes other features; one in what is judged or held together makes other runs."""
    written = []
    monkeypatch.setattr(evidence, "cache_frozen_features", lambda path, *_: written.append(path))
    images = evidence.images_of("smoke")
    masks = without_decoding(images)["mask"]
    first = next(at for at, mask in enumerate(masks) if mask is not None)
    unmasked = images.remove_columns("mask").add_column(
        "mask", [None if at == first else mask for at, mask in enumerate(masks)], feature=images.features["mask"]
    )
    groups = [f"{group} renamed" for group in images["group"]]
    same = images.remove_columns("group").add_column("group", groups)
    one = images.remove_columns("group").add_column("group", [groups[1], *groups[1:]])
    identities = []
    for changed in (images, same, unmasked, one, images.select([*range(len(images) - 1), 0])):
        monkeypatch.setattr(evidence, "images_of", lambda _, changed=changed: changed)
        evidence.features_of.__wrapped__("smoke", tmp_path)
        identities.append(evidence.data_of.__wrapped__("smoke"))
    assert len(set(written[:4])) == 1 and written[4] != written[0]
    assert identities[0] == identities[1] and len(set(identities)) == 4


def test_unknown_priors_and_half_lines_are_told(tmp_path):
    with pytest.raises(ValueError, match="prior='shufled': choose one of"):
        Arm("shufled")
    (tmp_path / "runs.jsonl").write_text('{"arm": "plain"}\n{"arm": "pl')
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 2 is not a whole run: delete that line"):
        read(tmp_path / "runs.jsonl")


def test_cross_fitted_priors_are_of_the_other_half_s_classifier(tmp_path, monkeypatch):
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    groups = np.asarray(bench.train["group"])
    learned, judged = [], []

    def primary(which, rows, arm):
        learned.append(set(rows["group"]))
        return which

    def priors(rows, model, processor, args):
        judged.append(set(rows["group"]))
        known = Features(saliency_prior=Array2D((2, 2), "uint8"), prior_weight=Value("float32"))
        values = {"saliency_prior": [np.full((2, 2), int(model[-1]) + 1)] * len(rows), "prior_weight": [1] * len(rows)}
        return concatenate_datasets([rows, Dataset.from_dict(values, features=known)], axis=1)

    monkeypatch.setattr(bench, "_primary", primary)
    monkeypatch.setattr(evidence, "add_saliency_priors", priors)
    rows = bench._with_priors(SEARCHED["guided, cross-fitted"], None)
    assert rows["index"][:] == bench.train["index"][:]
    for fold in (0, 1):
        assert not learned[fold] & judged[fold] and learned[fold] | judged[fold] == set(groups)
        of_fold = np.asarray(rows["saliency_prior"])[:, 0, 0] == fold + 1
        assert set(groups[of_fold]) == judged[fold]


def test_what_cannot_be_shuffled_is_known_before_training(tmp_path, monkeypatch):
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    groups = ["same"] * len(bench.train)
    bench.train = bench.train.remove_columns("group").add_column("group", groups)
    monkeypatch.setattr(bench, "_optimise", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(evidence.CannotShuffle):
        bench.run(ARMS["shuffled prior"])


def test_what_cannot_be_shuffled_is_left_out(tmp_path, monkeypatch, capsys):
    def run(bench, arm):
        if arm.prior == "shuffled":
            raise evidence.CannotShuffle("too few.")
        return {"ap": 0.5}

    monkeypatch.setattr(Bench, "run", run)
    arguments = ["--tasks", "smoke", "--budgets", "4", "--seeds", "0", "--arms", "shuffled prior", "plain"]
    places = ["--output", str(tmp_path / "runs.jsonl"), "--cache_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["evidence.py", *arguments, *places])
    main()
    assert "smoke  4  0  shuffled prior  left out: too few.\n" in capsys.readouterr().out
    assert [json.loads(line)["arm"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == ["plain"]


def test_a_file_of_other_settings_is_refused(tmp_path, monkeypatch, capsys):
    line = _identity("plain", "smoke", 4, 0, search=True, bf16=False) | {"figures": {}}
    (tmp_path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    arguments = ["--tasks", "smoke", "--budgets", "4", "--seeds", "0", "--arms", "plain"]
    monkeypatch.setattr(sys, "argv", ["evidence.py", *arguments, "--output", str(tmp_path / "runs.jsonl")])
    with pytest.raises(SystemExit):
        main()
    assert "has a run of 'plain' with other settings" in capsys.readouterr().err


def test_curves_of_what_there_is(tmp_path, monkeypatch):
    def runs(dataset, budget, arms, steps, seeds=3):
        line = {"dataset": dataset, "budget": budget, "figures": {"ap": 0.5, "saliency_ap": 0.1, "steps": steps}}
        return [json.dumps(line | {"arm": arm, "seed": seed}) for arm in arms for seed in range(seeds)]

    arms = list(evidence_curves.STYLES)
    searched = [*runs("magnetic_tile", 16, arms, 200), *runs("magnetic_tile_long", 16, arms, 500)]
    tested = [*runs("neu_det_long", 8, arms, 500), *runs("neu_det_long", 16, ["plain", "guided, head alone"], 500),
              *runs("neu_det_long", 32, ["plain"], 500, seeds=2)]  # fmt: skip
    (tmp_path / "search.jsonl").write_text("\n".join(searched))
    (tmp_path / "evidence.jsonl").write_text("\n".join(tested))
    monkeypatch.setattr(evidence_curves, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["evidence_curves.py", "--output", str(tmp_path / "curves.png")])
    drawn = []
    draw = evidence_curves.draw_curve
    monkeypatch.setattr(
        evidence_curves,
        "draw_curve",
        lambda axes, points, arm, shift: (drawn.append((arm, list(points))), draw(axes, points, arm, shift)),
    )
    evidence_curves.main()
    axes = plt.figure().subplots()
    taken = {"an arm without a curve": {seed: {"saliency_image_ap": 0.5, "steps": 4} for seed in range(3)}}
    evidence_curves.over_steps(axes, [taken], "saliency_image_ap")
    assert not axes.get_visible()
    assert ("plain", [8, 16]) in drawn and ("guided", [8]) in drawn and ("guided", [200, 500]) in drawn
    assert Image.open(tmp_path / "curves.png").width > 300
