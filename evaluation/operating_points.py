"""Another operating point of a finished run, from its stored scores: no image is read, nothing is trained."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from huggingface_hub.errors import StrictDataclassError

from ..configuration_kgl import KGLConfig
from ..data.storage import write_text
from ..errors import InputError
from ..training.arguments import OperatingArguments
from ..training.run_dir import RunState, check_run, of_another_version, read_finished_report
from .calibration import choose_operating_point
from .galleries import GALLERY_FILE
from .predictions import decision_columns
from .report import render_report
from .results import operating_rates
from .run_outputs import training_logs
from .validation_scores import VALIDATION_FILE


MODELS = ("primary", "final")


@dataclass(frozen=True)
class OperatingPoints:
    """
    New operating points of a run's classifiers; nothing is written yet.

    Attributes:
        run: its folder.
        configs: by model, with the new points.
        before: the content of `metrics.json`.
        after: the same with the new points and what follows from them.
        predictions: the content of `predictions.csv` with the new decisions, all text.
    """

    run: Path
    configs: dict[str, KGLConfig]
    before: dict[str, Any]
    after: dict[str, Any]
    predictions: pd.DataFrame


def choose_operating_points(run: Path, rule: OperatingArguments) -> OperatingPoints:
    """
    Choose the operating points of both classifiers anew.

    Args:
        run: folder of a finished run.
        rule: how the threshold is chosen.

    Raises:
        InputError: the folder holds no finished run of this version, or the run has nothing to choose a threshold on.
    """
    before = read_finished_report(run)
    check_run(run, [f"{model}/config.json" for model in MODELS])
    configs = {model: _read_config(run, model) for model in MODELS}
    good = configs["final"].defect_free_label
    _check_choosable(run, good, before)
    scores = [f"{model}_defect_score" for model in MODELS]
    validation = _read_table(run, VALIDATION_FILE, ["label", *scores])
    predictions = _read_table(run, "predictions.csv", ["label", *scores, *(f"{model}_decision" for model in MODELS)])
    if not (run / GALLERY_FILE).exists():
        raise InputError(_incomplete(run, GALLERY_FILE))
    if "thumbnails" not in json.loads((run / GALLERY_FILE).read_text(encoding="utf-8")):
        raise InputError(_incomplete(run, f"thumbnails in {GALLERY_FILE}"))
    defective = (validation["label"] != good).to_numpy()
    if defective.all() or not defective.any():
        kind = "defective" if defective.all() else "good"
        raise InputError(
            f"{run}: all its validation images are {kind}, and a threshold needs both kinds; train again into another "
            "--output_dir, with more images of the other kind, of different groups, or a larger --validation_share."
        )
    after = copy.deepcopy(before)
    after["settings"]["operating"] |= {
        "wanted_recall": rule.wanted_recall,
        "miss_cost": rule.miss_cost,
        "look_again_recall": rule.look_again_recall,
    }
    test_defective = (predictions["label"] != good).to_numpy()
    for model, config in configs.items():
        of_validation, of_test = (
            table[f"{model}_defect_score"].map(float).to_numpy() for table in (validation, predictions)
        )
        config.operating_point = choose_operating_point(
            of_validation, defective, rule.wanted_recall, rule.miss_cost, rule.look_again_recall
        )
        after["validation"][model]["operating_point"] = config.operating_point
        results = after["results"][model]
        for name in [name for name in results if "_at_operating_point" in name or "_with_look_again" in name]:
            del results[name]
        results |= operating_rates(test_defective, of_test, config.operating_point)
        for name, column in decision_columns(model, of_test, config).items():
            predictions[name] = column
    return OperatingPoints(run, configs, before, after, predictions)


def _check_choosable(run: Path, good: str | None, before: dict[str, Any]) -> None:
    if good is None:
        raise InputError(
            f"{run}: none of its classes is named as free of defects, so there is no threshold to choose; if one "
            "is, train again with --defect_free_label and another --output_dir."
        )
    if before["validation"]["final"] is None:
        raise InputError(
            f"{run}: it has no validation images, which choose the threshold; train again into another "
            "--output_dir, with --validation_share above 0 and two independent images of each class."
        )


def write_operating_points(points: OperatingPoints) -> None:
    """
    Write the configs, `state.json`, `predictions.csv` and the report with new operating points.

    Each file is written atomically. Stopped in between, the same command writes the same files again.
    """
    run, state = points.run, RunState(points.run)
    for model, config in points.configs.items():
        path = run / model / "config.json"
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored["operating_point"] = config.operating_point
        write_text(path, json.dumps(stored, indent=2, sort_keys=True) + "\n")  # as transformers writes it
        record = state.record(model)
        validation = record["validation"] | {"operating_point": config.operating_point}
        state.finish(model, **(record | {"validation": validation}))
    table = points.predictions
    write_text(run / "predictions.csv", table.to_csv(index=False, lineterminator="\n"))
    config = points.configs["final"]
    render_report(
        run / "report.html",
        points.after,
        table["label"].map(config.label2id).to_numpy(),
        {model: _probabilities(table, model, config) for model in MODELS},
        training_logs(run),
        config,
        table["group"].to_list() if "group" in table else [""] * len(table),
    )


def comparison_rows(points: OperatingPoints) -> list[tuple[str, str, str]]:
    """Return rows of a table on the final classifier: what, before, and after; `-` where there is none."""
    columns = []
    for report in (points.before, points.after):
        point, test = report["validation"]["final"]["operating_point"] or {}, report["results"]["final"]
        column = {"threshold on P(defect)": _number(point.get("threshold"))}
        column["look again from"] = _number(point.get("look_again_threshold"))
        for title, validation, result in (
            ("defects found", "recall", "recall_at_operating_point"),
            ("false alarms", "false_alarm_rate", "false_alarm_rate_at_operating_point"),
            ("defects found or looked at again", "look_again_recall", "recall_with_look_again"),
            ("good images not passed", "look_again_false_alarm_rate", "false_alarm_rate_with_look_again"),
        ):
            column[f"validation: {title}"] = _percent(point.get(validation))
            column[f"test: {title}"] = _percent(test.get(result))
        columns.append(column)
    rows = [(name, before, columns[1][name]) for name, before in columns[0].items()]
    return [row for row in rows if row[1:] != ("-", "-")]


def _read_config(run: Path, model: str) -> KGLConfig:
    try:
        return KGLConfig.from_pretrained(run / model)
    except (OSError, StrictDataclassError) as error:
        raise InputError(of_another_version(run, f"{model}/config.json")) from error


def _read_table(run: Path, name: str, columns: list[str]) -> pd.DataFrame:
    """
    Return a table of the run, all text, so that what is not changed is written as it was.

    Raises:
        InputError: it is missing or lacks columns.
    """
    if not (run / name).is_file():
        raise InputError(_incomplete(run, name))
    table = pd.read_csv(run / name, dtype=str, keep_default_na=False)
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(_incomplete(run, f"column {missing[0]} of {name}"))
    return table


def _incomplete(run: Path, what: str) -> str:
    return (
        f"{run}: {what} is missing, which runs of earlier versions do not have; train it again into another "
        "--output_dir."
    )


def _probabilities(table: pd.DataFrame, model: str, config: KGLConfig) -> np.ndarray:
    columns = [f"{model}_probability_{config.id2label[index]}" for index in range(config.num_labels)]
    return table[columns].astype(float).to_numpy()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


__all__ = [
    "MODELS",
    "OperatingPoints",
    "choose_operating_points",
    "comparison_rows",
    "write_operating_points",
]
