"""Watched folders: complete files only, nothing twice, nothing missed, and a clean end."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny import make_images, save_noise, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.errors import InputError
from kgl.evaluation.predict_folder import ImageSources, load_pipeline, open_predictor, predict_folder
from kgl.evaluation.prediction_table import PredictionTable
from kgl.evaluation.watch_folders import PATIENCE, FolderWatcher, StopSignal, unlike_warner, watch_folders
from kgl.pipeline_kgl import DefectDetectionPipeline


PREDICTION = {
    "label": "pit", "score": 1.0, "scores": {"pit": 1.0}, "boxes": [], "defect_score": 1.0, "defective": True,
    "decision": "defective", "unlike_training": None,
}  # fmt: skip


class Watched:
    """A watcher of `line` whose images are put into its table as they are found."""

    def __init__(self, folder: Path) -> None:
        self.line = folder / "line"
        self.line.mkdir()
        self.table = PredictionTable(folder / "predictions.csv", ["pit"])
        self.watcher = FolderWatcher(ImageSources.of([self.line], folder / "out"), self.table)
        self.stop = StopSignal()

    def look(self) -> list[str]:
        """Look once, and return the names that are decided."""
        found = list(self.watcher.complete_images(self.stop))
        self.table.remove([name for name, *_ in found])
        for name, stamp, image in found:
            assert image.size == (24, 24)
            self.table.append(name, stamp, PREDICTION)
        return [name for name, *_ in found]


@pytest.fixture
def watched(tmp_path) -> Watched:
    return Watched(tmp_path)


def test_file_is_decided_once_when_two_looks_find_it_the_same(watched):
    save_noise(watched.line / "a.png")
    assert [watched.look() for _ in range(4)] == [[], ["a.png"], [], []]
    save_noise(watched.line / "deep" / "b.png")
    assert [watched.look() for _ in range(3)] == [[], ["deep/b.png"], []]


def test_file_that_grows_is_waited_for(watched):
    save_noise(watched.line / "whole.png")
    content = (watched.line / "whole.png").read_bytes()
    (watched.line / "whole.png").unlink()
    for end in (1, 50, 100, len(content) - 1, len(content)):
        (watched.line / "a.png").write_bytes(content[:end])
        assert watched.look() == []
    assert watched.look() == ["a.png"]


def test_half_file_that_rests_is_no_image_until_it_is_whole(watched, capsys):
    save_noise(watched.line / "a.png")
    content = (watched.line / "a.png").read_bytes()
    (watched.line / "a.png").write_bytes(content[: len(content) // 2])
    assert [watched.look() for _ in range(PATIENCE)] == [[]] * PATIENCE
    assert capsys.readouterr().err == ""
    (watched.line / "a.png").write_bytes(content)
    assert [watched.look() for _ in range(2)] == [[], ["a.png"]]
    assert watched.watcher.unusable == {}


def test_file_that_never_decodes_is_named_once_and_may_be_mended(watched, capsys):
    save_noise(watched.line / "a.png")
    assert [watched.look() for _ in range(2)] == [[], ["a.png"]]
    content = (watched.line / "a.png").read_bytes()
    (watched.line / "a.png").write_text("no image")
    assert [watched.look() for _ in range(PATIENCE)] == [[]] * PATIENCE
    assert list(watched.table.rows) == ["a.png"] and capsys.readouterr().err == ""
    assert [watched.look() for _ in range(4)] == [[]] * 4
    assert capsys.readouterr().err == f"  {watched.line / 'a.png'}: not an image\n"
    assert list(watched.table.rows) == [] and list(watched.watcher.unusable) == ["a.png"]
    (watched.line / "a.png").write_bytes(content)
    assert [watched.look() for _ in range(2)] == [[], ["a.png"]]
    assert watched.watcher.unusable == {}


def test_changed_file_replaces_its_row(watched):
    for name in ("a.png", "b.png"):
        save_noise(watched.line / name)
    assert [watched.look() for _ in range(2)] == [[], ["a.png", "b.png"]]
    save_noise(watched.line / "a.png", 7)
    os.utime(watched.line / "a.png", (1, 1))
    assert list(watched.table.rows) == ["a.png", "b.png"]  # until the new one is decided
    assert [watched.look() for _ in range(3)] == [[], ["a.png"], []]
    assert list(watched.table.rows) == ["b.png", "a.png"]


def test_file_that_changes_while_it_is_read_is_waited_for(watched, monkeypatch):
    import kgl.evaluation.watch_folders as module

    save_noise(watched.line / "a.png")
    watched.look()
    load = module.load_image_file

    def load_and_change(path: Path) -> Image.Image:
        image = load(path)
        os.utime(path, (5, 5))
        return image

    with monkeypatch.context() as patched:
        patched.setattr(module, "load_image_file", load_and_change)
        assert watched.look() == []
    assert [watched.look() for _ in range(2)] == [[], ["a.png"]]


def test_empty_and_vanished_folders_are_said_once(watched, capsys):
    for _ in range(3):
        watched.look()
    assert capsys.readouterr().out == f"{watched.line}: there is no image in it; waiting.\n"
    save_noise(watched.line / "a.png")
    watched.look()
    shutil.rmtree(watched.line)
    for _ in range(3):
        assert watched.look() == []
    assert capsys.readouterr().out == f"{watched.line}: it is gone; waiting.\n"
    save_noise(watched.line / "a.png")
    assert [watched.look() for _ in range(2)] == [[], ["a.png"]]
    assert capsys.readouterr().out == f"{watched.line}: it is there again.\n"
    for change in (shutil.rmtree, Path.mkdir):
        change(watched.line)
        watched.look()
    said = [f"{watched.line}: {what}; waiting." for what in ("it is gone", "there is no image in it")]
    assert capsys.readouterr().out.splitlines() == said


def refuse_permission(monkeypatch, function, *names):
    """Let an `os` function fail for these last parts of a path; return the names, which may change."""
    refused, kept = set(names), getattr(os, function)

    def call(path, *args, **options):
        if os.path.basename(path) in refused:
            raise PermissionError(13, "Permission denied", str(path))
        return kept(path, *args, **options)

    monkeypatch.setattr(os, function, call)
    return refused


def test_unreadable_subfolder_is_named_once_and_the_rest_is_watched(watched, capsys, monkeypatch):
    save_noise(watched.line / "sub" / "a.png")
    save_noise(watched.line / "b.png")
    refused = refuse_permission(monkeypatch, "scandir", "sub")
    assert [watched.look() for _ in range(4)] == [[], ["b.png"], [], []]
    warning = (
        f"Warning: {watched.line / 'sub'}: this folder cannot be read (Permission denied); change its permissions. "
        "Until then the images in it are left out.\n"
    )
    assert capsys.readouterr() == ("", warning)
    refused.clear()
    assert [watched.look() for _ in range(2)] == [[], ["sub/a.png"]]
    refused.add("sub")
    assert [watched.look() for _ in range(2)] == [[], []] and capsys.readouterr() == ("", warning)
    assert set(watched.table.rows) == {"b.png", "sub/a.png"}
    refused.add("line")
    assert [watched.look() for _ in range(2)] == [[], []]
    assert capsys.readouterr() == ("", warning.replace(str(watched.line / "sub"), str(watched.line)))


def test_folder_that_cannot_be_entered_is_named_once(watched, capsys, monkeypatch):
    for name in ("sub/a.png", "sub/b.png", "c.png"):
        save_noise(watched.line / name)
    refuse_permission(monkeypatch, "stat", "a.png", "b.png")
    assert [watched.look() for _ in range(3)] == [[], ["c.png"], []]
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"Warning: {watched.line / 'sub'}: this folder cannot be read")
    assert printed.err.count("\n") == 1


def test_files_that_are_gone_are_forgotten(watched):
    for index in range(5):
        (watched.line / f"{index}.png").write_text("no image")
        watched.look()
        (watched.line / f"{index}.png").unlink()
    watched.look()
    assert watched.watcher._pending == {} and watched.watcher.unusable == {}


def test_stop_ends_a_wait_and_a_look(watched):
    save_noise(watched.line / "a.png")
    watched.look()
    before = signal.getsignal(signal.SIGINT)
    with watched.stop as stop:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        started = time.monotonic()
        stop.wait(30)
        assert stop.requested and time.monotonic() - started < 10
        stop.wait(30)  # returns at once
        assert watched.look() == [] and time.monotonic() - started < 10
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_intervals_out_of_range_are_refused(tmp_path):
    for seconds in (0, 0.01, float("nan"), 1e9):
        with pytest.raises(InputError, match=r"--watch .*: it must lie in 0\.1\.\.86400 seconds"):
            watch_folders([tmp_path], "nonesuch", tmp_path / "out", seconds)


class Watching:
    """`kgl predict --watch` as a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        code = "from kgl.cli.main import main; main()"
        arguments = ["predict", "line", "--model", "model", "--output", "out", "--watch", "0.2", "--batch_size", "2"]
        root = Path(__file__).resolve().parents[3]
        with (folder / "stdout.txt").open("w") as output, (folder / "stderr.txt").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments], cwd=folder, stdout=output, stderr=errors,
                env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.read("stderr.txt")
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def rows(self) -> list[dict[str, str]]:
        path = self.folder / "out" / "predictions.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, number: int) -> tuple[int, str, str]:
        """Send a signal, and return the exit code, standard error and standard output."""
        self.process.send_signal(number)
        return self.process.wait(60), self.read("stderr.txt"), self.read("stdout.txt")


def cpu_seconds(process: subprocess.Popen) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_killed_watches_decide_every_image_once(tmp_path):
    processor = ViTImageProcessorPil(size={"height": 40, "width": 48})
    paths = sorted(make_images(tmp_path / "images").rglob("*.png"))
    pipe = DefectDetectionPipeline(tiny_model(), image_processor=processor)
    scores = sorted(pipe(str(path))["defect_score"] for path in paths)
    point = {"threshold": (scores[11] + scores[12]) / 2, "look_again_threshold": (scores[5] + scores[6]) / 2}
    tiny_model(operating_point=point).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "line").mkdir()
    for path in paths[:9]:
        shutil.copy(path, tmp_path / "line" / f"{path.parent.name}_{path.name}")
    first = Watching(tmp_path)
    first.wait_for(lambda: len(first.rows()) >= 3)
    first.kill()
    with (tmp_path / "out" / "predictions.csv").open("a") as file:
        file.write("line/good_5.png,scr")  # a torn row, should a kill ever leave one
    second = Watching(tmp_path)
    for path in paths[9:]:
        shutil.copy(path, tmp_path / "line" / f"{path.parent.name}_{path.name}")
    second.wait_for(lambda: len(second.rows()) >= 12)
    second.kill()
    third = Watching(tmp_path)
    third.wait_for(lambda: len(third.rows()) == 18)
    Image.fromarray(np.full((40, 48), 250, dtype=np.uint8)).save(tmp_path / "line" / "good_3.png")
    third.wait_for(lambda: len(third.rows()) == 18 and third.rows()[-1]["file_name"] == "good_3.png")
    shutil.rmtree(tmp_path / "line")
    third.wait_for(lambda: "it is gone" in third.read("stdout.txt"))
    used = cpu_seconds(third.process)
    time.sleep(2)
    assert cpu_seconds(third.process) - used < 0.5
    code, errors, printed = third.end(signal.SIGINT)
    assert (code, errors) == (0, "")
    rows = third.rows()
    names = [row["file_name"] for row in rows]
    assert len(names) == len(set(names)) == 18
    counts = [sum(row["decision"] == one for row in rows) for one in ("defective", "look again", "good")]
    line = "18 images: {} defective, {} look again, {} good, 0 unusable. Table: out/predictions.csv".format(*counts)
    assert printed.splitlines() == [
        "Watching line every 0.2 s until Ctrl-C or SIGTERM.",
        "Predicted anew, because the file changed since its row was written: good_3.png",
        "line: it is gone; waiting.", line,
    ]  # fmt: skip
    assert all(counts) and not (tmp_path / "out" / "predictions.csv.unfinished").exists()

    for path in paths:  # the same decisions as without watching
        (tmp_path / "line").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "line" / f"{path.parent.name}_{path.name}")
    Image.fromarray(np.full((40, 48), 250, dtype=np.uint8)).save(tmp_path / "line" / "good_3.png")
    predict_folder([tmp_path / "line"], str(tmp_path / "model"), tmp_path / "whole", batch_size=2)
    with (tmp_path / "whole" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        whole = {row["file_name"]: (row["decision"], float(row["defect_score"])) for row in csv.DictReader(file)}
    found = {row["file_name"]: (row["decision"], float(row["defect_score"])) for row in rows}
    assert {name: one[0] for name, one in found.items()} == {name: one[0] for name, one in whole.items()}
    assert [found[name][1] for name in sorted(found)] == pytest.approx([whole[name][1] for name in sorted(whole)])


def test_sigterm_ends_with_the_counts_and_exit_code_1_for_unusable_images(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 40, "width": 48}).save_pretrained(tmp_path / "model")
    (tmp_path / "line").mkdir()
    save_noise(tmp_path / "line" / "a.png")
    (tmp_path / "line" / "b.png").write_text("no image")
    watching = Watching(tmp_path)
    watching.wait_for(lambda: len(watching.rows()) == 1)
    watching.wait_for(lambda: "b.png" in watching.read("stderr.txt"))
    time.sleep(1)
    code, errors, printed = watching.end(signal.SIGTERM)
    assert code == 1 and errors.endswith("line/b.png: not an image\n") and len(errors.splitlines()) == 1
    assert printed.splitlines()[-1].endswith(" good, 1 unusable. Table: out/predictions.csv")


def test_watch_warns_once_when_images_begin_to_look_unlike(tmp_path, capsys):
    answers = iter([""] * 30 + ["darker"] * 100)
    training_range = {"groups": 150, "expected_share": 0.05}
    rows = {}
    config = SimpleNamespace(training_range=training_range)
    predictor = SimpleNamespace(
        pipeline=SimpleNamespace(model=SimpleNamespace(config=config)), table=SimpleNamespace(rows=rows)
    )
    warn = unlike_warner(predictor)
    for index, answer in enumerate(answers):
        rows[f"{index}.png"] = SimpleNamespace(unlike=answer)
        warn(f"{index}.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Warning: ") and "of the last 4" in line and "darker" in line
    config.training_range = None
    assert unlike_warner(predictor) is None


def test_watch_tells_of_every_decided_image(tmp_path):
    images = make_images(tmp_path / "line")
    tiny_model().save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 40, "width": 48}).save_pretrained(tmp_path / "model")
    sources, names = ImageSources.of([images], tmp_path / "out"), []
    with open_predictor(sources, *load_pipeline(str(tmp_path / "model"), 4, None), 4) as predictor:
        watcher = FolderWatcher(sources, predictor.table)
        for _ in range(2):
            predictor.predict(watcher.complete_images(StopSignal()), lambda loaded: loaded, names.append)
        assert names == list(predictor.table.rows) and len(names) == 18
