"""
Tables of the evidence bench, in Markdown: means over seeds with 95 % intervals, and paired differences.

    python benchmarks/evidence_tables.py [benchmarks/results/evidence.jsonl] [--into docs/evidence.md ...]

A difference is an arm's figure less the other's of the same dataset, budget and seed, in bold where its interval
leaves out zero (unless it would read as zero). Intervals are Student's t over seeds: the percentile bootstrap of five
values, asked for at 95 %, holds the truth of normal ones about 84 % of the time. None is given below three seeds.
Nothing is corrected for the number of comparisons: of twenty that mean nothing, one is in bold. `phases` and `steps`
are an arm's cost, its primary's included; `time` is that of its last phase over plain training's of that seed, the
median over seeds, on machines that did other things too (what a step costs is measured apart, `step_cost.py`).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from measure import lines_of
from scipy import stats


CLASSIFICATION = {
    "ap": "AP",
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "defect_ap": "defect AP",
    "f1_max": "best F1",
    "recall_at_false_alarm_rate": "recall at 5 %",
}
MAPS = {
    "map_ap": "class map px AP",
    "map_image_ap": "a image",
    "map_cell_ap": "cell AP",
    "map_pointing": "pointing",
    "map_entropy": "entropy",
    "map_area90": "area 90 %",
    "gradcam_ap": "Grad-CAM++ px AP",
    "gradcam_image_ap": "Grad-CAM++ an image",
    "gradcam_cell_ap": "Grad-CAM++ cell AP",
    "gradcam_pointing": "Grad-CAM++ pointing",
    "saliency_ap": "H px AP",
    "saliency_image_ap": "H an image",
    "saliency_cell_ap": "H cell AP",
    "saliency_pointing": "H pointing",
    "saliency_entropy": "H entropy",
    "saliency_area90": "H area 90 %",
}
COMPARED = ("ap", "auroc", "accuracy", "balanced_accuracy", "defect_ap", "map_ap", "saliency_ap")
GUIDED = ("guided", "guided, convex")
LADDER = ("plain", "plain, twice as long", "blank mask", "shuffled prior", "guided, true masks")
# The same controls under the paper's schedule.
CONVEX = {
    "blank mask": "blank mask, convex",
    "shuffled prior": "shuffled prior, convex",
    "guided, true masks": "true masks, convex",
}
AGAINST = ("plain", "plain, twice as long", "blank mask")
OTHERS = ("plain, early-stopped", "self-distillation", "guided, paper", "guided, head alone")
GOAL = ("plain, twice as long", "blank mask")  # to be beaten in AP and accuracy
GOAL_SETS = ("kolektorsdd_long", "magnetic_tile_long", "neu_det_long")
GOAL_BUDGETS = (8, 16)
GOAL_RATIO = 1.5  # of plain training's better map
TILES = ("magnetic_tile", "magnetic_tile_long", "magnetic_tile_defect_long")
OF_MAPS = ("plain", "shuffled prior", "guided, paper", "guided, head alone", "guided, true masks")

Seeds = dict[int, dict[str, float]]  # seed -> figures
Runs = dict[str, Seeds]  # of an arm


def read(path: Path) -> dict[tuple[str, int], Runs]:
    """Dataset and budget to their runs."""
    runs: dict[tuple[str, int], Runs] = defaultdict(lambda: defaultdict(dict))
    for line in lines_of(path):
        runs[line["dataset"], line["budget"]][line["arm"]][line["seed"]] = line["figures"]
    return runs


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean; None below three values."""
    if len(values) < 3:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def told(values: np.ndarray, sign: str = "") -> str:
    """The mean with its interval, a difference in bold where that leaves out zero."""
    around = interval(values)
    if around is None:
        return f"{values.mean():{sign}.3f}"
    text = f"{values.mean():{sign}.3f} ({around[0]:{sign}.3f} .. {around[1]:{sign}.3f})"
    clear = (around[0] > 0 or around[1] < 0) and abs(values.mean()) >= 0.0005
    return f"**{text}**" if sign and clear else text


def means_table(runs: Runs, figures: dict[str, str], costs: bool = False) -> str:
    """A row an arm, a column a figure that any arm has in all its runs; behind them what it costs."""
    columns = [name for name in figures if any(all_have(seeds, name) for seeds in runs.values())]
    heads = [figures[name] for name in columns] + (["phases", "steps", "time"] if costs else [])
    lines = ["| arm | seeds | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (1 + len(heads))]
    for arm, seeds in runs.items():
        cells = [told(values_of(seeds, name)) if all_have(seeds, name) else "" for name in columns]
        if costs:
            one = next(iter(seeds.values()))
            ours, plain = (values_of(part, "seconds") for part in shared_seeds(seeds, runs.get("plain", {})))
            time = f"{np.median(ours / plain):.2f}" if len(ours) >= 3 else ""
            cells += [f"{one['phases']:g}", f"{one['steps']:g}", time]
        lines.append(f"| {arm} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def all_have(seeds: Seeds, figure: str) -> bool:
    return all(figure in one for one in seeds.values())


def values_of(seeds: Seeds, figure: str) -> np.ndarray:
    return np.array([one[figure] for one in seeds.values()])


def paired(ours: Seeds, others: Seeds, figure: str, theirs: str | None = None) -> np.ndarray:
    """`figure` of ours less `theirs` (the same by default) of the others, over the seeds that have both."""
    theirs = theirs or figure
    shared = sorted(seed for seed in ours.keys() & others.keys() if figure in ours[seed] and theirs in others[seed])
    return np.array([ours[seed][figure] - others[seed][theirs] for seed in shared])


def differences_table(runs: Runs, against: str) -> str:
    """Each arm less `against`, over the seeds both have."""
    columns = [name for name in COMPARED if any(name in one for one in runs[against].values())]
    lines = [
        f"| less {against} | seeds | " + " | ".join((CLASSIFICATION | MAPS)[name] for name in columns) + " |",
        "| --- |" + " ---: |" * (len(columns) + 1),
    ]
    for arm, seeds in runs.items():
        shared = sorted(seeds.keys() & runs[against].keys())
        if arm == against or not shared:
            continue
        cells = []
        for name in columns:
            cells.append(told(paired(seeds, runs[against], name), "+"))
        lines.append(f"| {arm} | {len(shared)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compared_table(
    by_task: dict[tuple[str, int], Runs], figure: str, controls: tuple[str, ...], arms: tuple[str, ...] = ("guided",)
) -> str:
    """An arm's figure less that of each control, over the seeds both have (told where fewer): three or more."""
    lines = [
        "| dataset | a class | arm | seeds | figure | " + " | ".join(f"less {arm}" for arm in controls) + " |",
        "| --- | ---: | --- |" + " ---: |" * (2 + len(controls)),
    ]
    for (dataset, budget), runs in sorted(by_task.items()):
        for arm in arms:
            own = np.array([one[figure] for one in runs.get(arm, {}).values() if figure in one])
            if len(own) < 3:
                continue
            cells = [arm, str(len(own)), told(own)]
            for control in controls:
                values = paired(runs[arm], runs.get(under_schedule_of(arm, control), {}), figure)
                cells.append(told_lead(values, len(own)) if len(values) >= 3 else "")
            lines.append(f"| {dataset} | {budget} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def levels_table(by_task: dict[tuple[str, int], Runs]) -> str:
    """What is reached where: plain training's mean over seeds and the default's, one behind the other."""
    arms = ("plain", "guided")
    figures = ("ap", "accuracy", "balanced_accuracy", "recall_at_false_alarm_rate")
    heads = " | ".join(f"{CLASSIFICATION[figure]}: {', '.join(arms)}" for figure in figures)
    lines = [f"| dataset | a class | {heads} |", "| --- |" + " ---: |" * (1 + len(figures))]
    for (dataset, budget), runs in sorted(by_task.items()):
        if not set(arms) <= runs.keys():
            continue
        cells = [
            ", ".join(f"{values_of(runs[arm], figure).mean():.3f}" for arm in arms)
            if all(all_have(runs[arm], figure) for arm in arms)
            else ""
            for figure in figures
        ]
        lines.append(f"| {dataset.removesuffix('_long')} | {budget} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def told_lead(values: np.ndarray, seeds: int) -> str:
    """A paired difference, and of how many seeds it is where that is less than `seeds`."""
    return told(values, "+") + (f", {len(values)} seeds" if len(values) < seeds else "")


def under_schedule_of(arm: str, control: str) -> str:
    """The control's name under the schedule of one of `GUIDED`."""
    return CONVEX.get(control, control) if arm == "guided, convex" else control


def overall_table(by_task: dict[tuple[str, int], Runs], where: tuple[str, ...]) -> str:
    """
    The default less each control, each seed's mean over places (dataset and budget), which are not independent.

    Taken are the places in which both have at least five seeds: `everywhere`, with `8 and 16` a class, those of these
    that the goal names (`goal`), or of other datasets than magnetic tiles (`not tiles`).
    """
    figures = ("ap", "auroc", "accuracy", "balanced_accuracy")
    lines = [
        "| less | where | places | seeds | " + " | ".join(CLASSIFICATION[figure] for figure in figures) + " |",
        "| --- | --- |" + " ---: |" * (2 + len(figures)),
    ]
    for control in LADDER:
        pairs = {
            place: (runs["guided"], runs[control])
            for place, runs in by_task.items()
            if "guided" in runs and control in runs and len(runs["guided"].keys() & runs[control].keys()) >= 5
        }
        for scope in where:
            of_scope = [pair for place, pair in pairs.items() if _lies_in(place, scope)]
            if not of_scope:
                continue
            seeds = sorted(set.intersection(*(set(one) for pair in of_scope for one in pair)))
            cells = []
            for figure in figures:
                leads = [[ours[seed][figure] - theirs[seed][figure] for seed in seeds] for ours, theirs in of_scope]
                cells.append(told(np.mean(leads, axis=0), "+"))
            lines.append(f"| {control} | {scope} | {len(of_scope)} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _lies_in(place: tuple[str, int], scope: str) -> bool:
    dataset, budget = place
    return {
        "everywhere": True,
        "8 and 16": budget in GOAL_BUDGETS,
        "goal": budget in GOAL_BUDGETS and dataset in GOAL_SETS,
        "not tiles": dataset not in TILES,
    }[scope]


def _ahead(values: np.ndarray) -> bool:
    around = interval(values)
    return around is not None and around[0] > 0


def goal_table(by_task: dict[tuple[str, int], Runs]) -> str:
    """
    The default with the goal's budgets, each part of the goal in a column, and at how many places each is reached.

    First the datasets that the goal names, then others. A place is left out until all of it is measured.
    """
    parts = [(figure, control) for figure in ("ap", "accuracy") for control in GOAL]
    heads = [f"{CLASSIFICATION[figure]} less {control}" for figure, control in parts]
    lines = [
        "| dataset | a class | seeds | " + " | ".join([*heads, "H px AP / plain's better map"]) + " |",
        "| --- | ---: | ---: |" + " ---: |" * (len(heads) + 1),
    ]
    scores: dict[bool, list[tuple[bool, bool, bool]]] = {True: [], False: []}  # AP, accuracy and map, place by place
    for place in sorted(by_task, key=lambda place: (not _lies_in(place, "goal"), place)):
        runs = by_task[place]
        if not _lies_in(place, "8 and 16") or not {"guided", "plain", *GOAL} <= runs.keys():
            continue
        guided, plain = shared_seeds(runs["guided"], runs["plain"])
        better, taught = better_map(plain, "ap"), values_of(guided, "saliency_ap")
        if not len(better):
            continue
        leads = {part: paired(runs["guided"], runs[part[1]], part[0]) for part in parts}
        clear = [all(_ahead(leads[figure, control]) for control in GOAL) for figure in ("ap", "accuracy")]
        ratio = taught.mean() / better.mean()
        scores[_lies_in(place, "goal")].append((*clear, ratio >= GOAL_RATIO))
        cells = [place[0], str(place[1]), str(len(guided)), *(told_lead(leads[part], len(guided)) for part in parts)]
        lines.append("| " + " | ".join([*cells, f"{ratio:.2f}"]) + " |")
    said = []
    for named, of_places in scores.items():
        ap, accuracy, heat = (sum(column) for column in zip(*of_places, strict=True)) if of_places else (0, 0, 0)
        where = f"the {len(of_places)} places of the goal" if named else f"{len(of_places)} other places"
        said.append(f"of {where}, AP at {ap}, accuracy at {accuracy}, the map at {heat}")
    return "\n".join([*lines, "", f"Clear of both controls, or ahead by half: {'; '.join(said)}."])


def maps_table(by_task: dict[tuple[str, int], Runs]) -> str:
    """The default's heat map against the better map that plain training has anyway."""
    figures = {"ap": "H px AP", "image_ap": "H px AP an image", "pointing": "H pointing"}
    heads = " | ".join(f"{name} | less plain's better map | ratio" for name in figures.values())
    lines = [f"| dataset | a class | seeds | {heads} |", "| --- |" + " ---: |" * (2 + 3 * len(figures))]
    for (dataset, budget), runs in sorted(by_task.items()):
        guided, plain = shared_seeds(runs.get("guided", {}), runs.get("plain", {}))
        if not guided:
            continue
        cells = [cell for figure in figures for cell in _against_better_map(guided, plain, figure)]
        lines.append(f"| {dataset} | {budget} | {len(guided)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shared_seeds(ours: Seeds, others: Seeds) -> tuple[Seeds, Seeds]:
    """Both, with the seeds that both have."""
    shared = sorted(ours.keys() & others.keys())
    return {seed: ours[seed] for seed in shared}, {seed: others[seed] for seed in shared}


def better_map(plain: Seeds, figure: str) -> np.ndarray:
    """
    A figure of plain training's better map: the class map, or that of the priors' own method.

    An empty array where the figure was not taken of both in all seeds.
    """
    free = [f"{one}_{figure}" for one in ("map", "gradcam")]
    if not all(all_have(plain, one) for one in free):
        return np.array([])
    return max((values_of(plain, one) for one in free), key=np.mean)


def _against_better_map(guided: Seeds, plain: Seeds, figure: str) -> list[str]:
    """H's figure, its lead over plain's better map, and the ratio; nothing where they were not taken."""
    better = better_map(plain, figure)
    if not len(better) or not all_have(guided, f"saliency_{figure}"):
        return ["", "", ""]
    taught = values_of(guided, f"saliency_{figure}")
    return [told(taught), told(taught - better, "+"), f"{taught.mean() / better.mean():.2f}"]


def put_between(text: str, name: str, tables: str) -> str:
    """`text` with the lines between `<!-- name -->` and `<!-- /name -->` replaced; ValueError where they are not."""
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = text.partition(opening)
    _, closed, after = rest.partition(closing)
    if not found or not closed:
        raise ValueError(f"there is no {opening.strip()} ... {closing} to put tables between.")
    return before + found + "\n" + tables + "\n\n" + closed + after


def main() -> None:
    """Print all tables, or put them where a page wants them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parent / "results" / "evidence.jsonl"
    parser.add_argument("runs", type=Path, nargs="?", default=default)
    parser.add_argument("--against", nargs="+", help=f"arms; {', '.join(AGAINST)} by default")
    parser.add_argument("--into", type=Path, nargs="+", help="pages; a block goes where marks of its name are")
    options = parser.parse_args()
    if not options.runs.exists():
        parser.error(f"{options.runs}: there are no runs.")
    by_task = read(options.runs)
    unknown = set(options.against or ()) - {arm for runs in by_task.values() for arm in runs}
    if unknown:
        parser.error(f"--against {', '.join(sorted(unknown))}: no run is of that arm.")
    parts = []
    for (dataset, budget), runs in sorted(by_task.items()):
        parts.append(f"### {dataset}, {budget} a class")
        parts += [means_table(runs, CLASSIFICATION, costs=True), means_table(runs, MAPS)]
        parts += [differences_table(runs, against) for against in options.against or AGAINST if against in runs]
    name = options.runs.name
    blocks = {
        f"{name} goal": goal_table(by_task),
        f"{name} in short": overall_table(by_task, ("8 and 16", "goal")),
        f"{name} overall": overall_table(by_task, ("everywhere", "8 and 16", "goal", "not tiles")),
        f"{name} levels": levels_table(by_task),
        f"{name} ap": compared_table(by_task, "ap", LADDER, GUIDED),
        f"{name} accuracy": compared_table(by_task, "accuracy", LADDER, GUIDED),
        f"{name} f1": compared_table(by_task, "f1_max", LADDER, GUIDED),
        f"{name} recall": compared_table(by_task, "recall_at_false_alarm_rate", LADDER, GUIDED),
        f"{name} others": compared_table(by_task, "ap", OTHERS),
        f"{name} maps": maps_table(by_task),
        f"{name} H": compared_table(by_task, "saliency_image_ap", OF_MAPS),
        f"{name} H pooled": compared_table(by_task, "saliency_ap", OF_MAPS),
        f"{name} H pointing": compared_table(by_task, "saliency_pointing", OF_MAPS),
        name: "\n\n".join(parts),
    }
    if options.into is None:
        print(*blocks.values(), sep="\n\n")
        return
    for page in options.into:
        text = page.read_text()
        wanted = [block for block in blocks if f"<!-- {block} -->" in text]
        if not wanted:
            parser.error(f"{page} has no marks named after {name}: <!-- {name} --> and <!-- /{name} -->.")
        for block in wanted:
            text = put_between(text, block, blocks[block])
        page.write_text(text)


if __name__ == "__main__":
    main()
