"""
Write the tables of the evidence bench in Markdown: means over seeds with 95 % intervals, and paired differences.

    python benchmarks/evidence/write_tables.py [benchmarks/results/evidence.jsonl] [--into docs/evidence.md ...]

A difference is an arm's metric minus the control's of the same dataset, budget and seed, in bold where its interval
excludes 0 (unless it is printed as 0). Intervals are Student's t over seeds, from three seeds on: the percentile
bootstrap of five normal values, asked for 95 %, covers about 84 %. They are not corrected for multiple comparisons:
one in twenty is bold by chance. `phases` and `steps` count all trainings of an arm, the primary's included; `time` is
that of its last phase over plain training's of the same seed, the median over seeds, on machines with other load
(`step_cost.py` measures what a step costs).

A page gets the blocks that it has markers for, `<!-- evidence headline -->` to `<!-- /evidence headline -->`; the
first word is the name of the runs' file, and without a second word the block is all tables, place by place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from kgl.benchmarks.evidence.formatting import replace_block
from kgl.benchmarks.evidence.records import read_runs
from kgl.benchmarks.evidence.summary import SCOPES, goal_table, headline_table, overall_table
from kgl.benchmarks.evidence.tables import (
    CLASSIFICATION,
    CONTROLS,
    GUIDED,
    MAP_CONTROLS,
    MAPS,
    OTHER_CONTROLS,
    arms_of,
    controls_table,
    differences_table,
    levels_table,
    maps_table,
    means_table,
    places,
)
from kgl.benchmarks.measure import RESULTS


AGAINST = ("plain", "plain, twice as long", "blank mask")


def all_tables(runs: pd.DataFrame, against: list[str]) -> str:
    """Return the means of every place and the differences from some arms."""
    parts = []
    for (dataset, budget), of_place in places(runs):
        parts.append(f"### {dataset}, {budget} per class")
        parts += [means_table(of_place, CLASSIFICATION, costs=True), means_table(of_place, MAPS)]
        parts += [differences_table(of_place, control) for control in against if control in arms_of(of_place)]
    return "\n\n".join(parts)


def all_blocks(runs: pd.DataFrame, name: str, against: list[str]) -> dict[str, str]:
    """Return the name and Markdown of every block."""
    return {
        f"{name} headline": headline_table(runs),
        f"{name} goal": goal_table(runs),
        f"{name} overall": overall_table(runs, SCOPES),
        f"{name} levels": levels_table(runs),
        f"{name} ap": controls_table(runs, "ap", CONTROLS, GUIDED),
        f"{name} accuracy": controls_table(runs, "accuracy", CONTROLS, GUIDED),
        f"{name} f1": controls_table(runs, "f1_max", CONTROLS, GUIDED),
        f"{name} recall": controls_table(runs, "recall_at_false_alarm_rate", CONTROLS, GUIDED),
        f"{name} other controls": controls_table(runs, "ap", OTHER_CONTROLS),
        f"{name} maps": maps_table(runs),
        f"{name} heat map per image": controls_table(runs, "saliency_image_ap", MAP_CONTROLS),
        f"{name} heat map pooled": controls_table(runs, "saliency_ap", MAP_CONTROLS),
        f"{name} heat map pointing": controls_table(runs, "saliency_pointing", MAP_CONTROLS),
        name: all_tables(runs, against),
    }


def main() -> None:
    """Print all blocks, or write them into pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", default=RESULTS / "evidence.jsonl")
    parser.add_argument("--against", nargs="+", default=AGAINST, help="arms that others are compared with")
    parser.add_argument("--into", type=Path, nargs="+", help="pages with markers to fill")
    options = parser.parse_args()
    if not options.runs.exists():
        parser.error(f"{options.runs}: no such file.")
    runs = read_runs(options.runs)
    unknown = set(options.against) - set(arms_of(runs)) - set(AGAINST)
    if unknown:
        parser.error(f"--against {', '.join(sorted(unknown))}: no run of that arm.")
    blocks = all_blocks(runs, options.runs.stem, options.against)
    if options.into is None:
        print(*blocks.values(), sep="\n\n")
        return
    for page in options.into:
        text = page.read_text()
        wanted = [block for block in blocks if f"<!-- {block} -->" in text]
        if not wanted:
            parser.error(f"{page} has no markers of {options.runs.stem}, such as <!-- {next(iter(blocks))} -->.")
        for block in wanted:
            text = replace_block(text, block, blocks[block])
        page.write_text(text)


if __name__ == "__main__":
    main()
