"""
Compare forecasts of `kgl curve` with what was measured: the largest budgets are hidden, and then looked at.

    python benchmarks/curve_forecast.py runs/boards_curve runs/tiles_curve ...

The output folders of finished curves are read; every budget from the fourth on is forecast from those before it. The
results go to `benchmarks/results/curve_forecast.json`; `labelling_tables.py` makes the table of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from kgl.benchmarks.evidence.records import read_lines
from kgl.benchmarks.measure import store
from kgl.labelling.curve import RISING, summarize_curve


def forecasts(folder: Path) -> list[dict[str, Any]]:
    """Return forecast and measured gain of every metric and budget of a finished curve."""
    fits = pd.DataFrame(read_lines(folder / "fits.jsonl"))
    settings = json.loads((folder / "run.json").read_text())["curve"]
    budgets, found = sorted(fits["per_class"].unique()), []
    for hidden in budgets[3:]:
        seen = fits[fits["per_class"] < hidden]
        curve = summarize_curve(seen, "", settings["heads"], settings["num_folds"])
        for name in [name for name in RISING if name in curve["metrics"]]:
            means = fits.groupby("per_class")[name].mean()
            forecast = curve["metrics"][name]["forecast"]
            measured = float(means[hidden] - means[forecast["from"]])
            low, high = forecast["interval"]
            found.append({
                "curve": folder.name, "metric": name, "from": forecast["from"], "to": int(hidden),
                "forecast": forecast["gain"], "interval": [low, high], "measured": measured,
                "inside": bool(low <= measured <= high),
            })  # fmt: skip
    return found


def main() -> None:
    """Compare, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path, nargs="+", help="output folders of kgl curve")
    options = parser.parse_args()
    found = [line for folder in options.curves for line in forecasts(folder)]
    for line in found:
        print(json.dumps(line))
    store("curve_forecast", {"curves": [folder.name for folder in options.curves]}, found)


if __name__ == "__main__":
    main()
