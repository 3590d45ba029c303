"""The table of `kgl predict`: whole rows only."""

from pathlib import Path

import pytest

from kgl.evaluation.prediction_table import PredictionTable, file_stamp


STAMP = ("12", "2026-01-01T00:00:00.000000+00:00")


def prediction(score: float = 0.75, decision: str | None = "defective", unlike: list[str] | None = None) -> dict:
    return {
        "label": "pit", "score": score, "scores": {"good": 1 - score, "pit": score}, "boxes": [],
        "unlike_training": unlike, "defect_score": None if decision is None else score, "decision": decision,
        "defective": None if decision is None else decision == "defective",
    }  # fmt: skip


def table_at(path: Path) -> PredictionTable:
    return PredictionTable(path, ["good", "pit"])


def test_rows_survive_reopening(tmp_path):
    with table_at(tmp_path / "a.csv") as table:
        table.append('a, "b".png', STAMP, prediction())
        table.append("c.png", STAMP, prediction(0.3, "look again", ["darker", "other size"]))
        table.append("d.png", STAMP, prediction(0.3, "good", []))
        table.append(r"\xff.png", STAMP, prediction(decision=None))
        before = dict(table.rows)
    with table_at(tmp_path / "a.csv") as table:
        assert table.rows == before
    assert [row.decision for row in before.values()] == ["defective", "look again", "good", ""]
    assert [row.unlike for row in before.values()] == ["", "darker; other size", "", ""]
    assert (tmp_path / "a.csv").read_text().splitlines()[2] == (
        f"c.png,pit,0.3,0.3,False,look again,darker; other size,[],{','.join(STAMP)},0.7,0.3"
    )


def test_row_is_one_write(tmp_path, monkeypatch):
    """Boxes make a row larger than any buffer; what is killed between two writes would leave half of it."""
    long = prediction() | {"boxes": [{"xmin": index, "score": 0.5} for index in range(20_000)]}
    with table_at(tmp_path / "a.csv") as table:
        sizes = []
        write = table._file.write

        class Counted:
            def __init__(self, file: object) -> None:
                self.fileno = file.fileno

            def write(self, row: bytes) -> int:
                sizes.append(len(row))
                return write(row)

        kept, table._file = table._file, Counted(table._file)
        table.append("a.png", STAMP, long)
        table._file = kept
    assert len(sizes) == 1 and sizes[0] > 400_000


def test_torn_row_is_removed(tmp_path):
    with table_at(tmp_path / "a.csv") as table:
        table.append("a.png", STAMP, prediction())
    whole = (tmp_path / "a.csv").read_bytes()
    with (tmp_path / "a.csv").open("ab") as file:
        file.write(b"b.png,pi")
    with table_at(tmp_path / "a.csv") as table:
        assert list(table.rows) == ["a.png"]
        table.append("b.png", STAMP, prediction())
    assert (tmp_path / "a.csv").read_bytes() == whole + whole.splitlines(keepends=True)[1].replace(b"a.png", b"b.png")


def test_removed_rows_make_room_for_new_ones(tmp_path):
    with table_at(tmp_path / "a.csv") as table:
        for name in ("a.png", "b.png", "c.png"):
            table.append(name, STAMP, prediction())
        kept = (tmp_path / "a.csv").stat().st_ino
        table.remove(["nonesuch"])
        assert (tmp_path / "a.csv").stat().st_ino == kept  # not written at all
        table.remove(["a.png", "nonesuch"])
        table.append("a.png", STAMP, prediction(0.25, "good"))
        assert list(table.rows) == ["b.png", "c.png", "a.png"]
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["file_name", "b.png", "c.png", "a.png"]
    assert ",0.25,False,good," in lines[3]
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_changed_files_are_those_of_another_stamp(tmp_path):
    paths = {name: tmp_path / name for name in ("same.png", "other.png", "gone.png", "new.png")}
    for name in ("same.png", "other.png", "new.png"):
        paths[name].write_text(name)
    with table_at(tmp_path / "a.csv") as table:
        table.append("same.png", file_stamp(paths["same.png"]), prediction())
        table.append("other.png", STAMP, prediction())
        table.append("gone.png", STAMP, prediction())
        assert table.changed(paths) == ["other.png"]


def test_full_disk_leaves_whole_rows(tmp_path):
    with table_at(tmp_path / "a.csv") as table:
        table.append("a.png", STAMP, prediction())
        whole = (tmp_path / "a.csv").read_bytes()

        class Full:
            fileno, truncate, close = table._file.fileno, table._file.truncate, table._file.close

            @staticmethod
            def write(row: bytes, file: object = table._file) -> int:
                return file.write(row[:5])

        table._file = Full()
        with pytest.raises(OSError, match="No space left"):
            table.append("b.png", STAMP, prediction())
        assert list(table.rows) == ["a.png"]
    assert (tmp_path / "a.csv").read_bytes() == whole
