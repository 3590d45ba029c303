"""Predict the images of folders as they come, until a signal; a restart decides nothing twice and misses nothing."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ..data.images import load_image_file, unreadable_folder
from ..errors import InputError
from .predict_folder import (
    FolderPredictions,
    FolderPredictor,
    ImageSources,
    changed_sentence,
    load_pipeline,
    open_predictor,
)
from .prediction_stream import LoadedImage, UnusableImage
from .prediction_table import PredictionTable, Stamp, file_stamp
from .unlike_images import RecentImages


SHORTEST_WATCH, LONGEST_WATCH = 0.1, 86_400.0  # seconds between two looks
_GONE = "it is gone"
PATIENCE = 5  # looks at an unchanged file that cannot be decoded, before it counts as unusable


def watch_folders(
    paths: list[Path],
    model: str,
    output: Path,
    seconds: float,
    batch_size: int = 16,
    box_threshold: float | None = None,
) -> FolderPredictions:
    """
    Predict as [`~kgl.evaluation.predict_folder.predict_folder`] does, and then every new or changed image.

    A file counts as complete when its size and time are the same at two looks and it can be decoded. One that cannot
    is named on standard error, as unusable, at the sixth look that finds it unchanged. The row of a file that changed
    is replaced by a new one at the end of the table, and a line names it. A folder that cannot be read is named on
    standard error once, and the others are watched. The first time that more of the latest images look unlike the
    training ones than chance explains, standard error has a warning. SIGINT or SIGTERM ends it after the
    batches in progress, at most three, a second one at once.

    Args:
        paths: see `predict_folder`; folders may be empty, and may come and go.
        model: see `predict_folder`.
        output: see `predict_folder`.
        seconds: between two looks at the folders.
        batch_size: see `predict_folder`.
        box_threshold: see `predict_folder`.

    Raises:
        InputError: an argument cannot be used, or `output` holds something else or cannot be written to.
    """
    if not SHORTEST_WATCH <= seconds <= LONGEST_WATCH:
        raise InputError(f"--watch {seconds}: it must lie in {SHORTEST_WATCH}..{LONGEST_WATCH:.0f} seconds.")
    sources = ImageSources.of(paths, output)
    pipeline, threshold = load_pipeline(model, batch_size, box_threshold)
    with open_predictor(sources, pipeline, threshold, batch_size) as predictor, StopSignal() as stop:
        print(f"Watching {' '.join(map(str, paths))} every {seconds:g} s until Ctrl-C or SIGTERM.", flush=True)
        watcher, warn = FolderWatcher(sources, predictor.table), unlike_warner(predictor)
        while not stop.requested:
            replaced = predictor.predict(watcher.complete_images(stop), lambda loaded: loaded, warn)
            if replaced:
                print(changed_sentence(replaced), flush=True)
            stop.wait(seconds)
        return predictor.count([one for _, one in watcher.unusable.values()], [])


def unlike_warner(predictor: FolderPredictor) -> Callable[[str], None] | None:
    """Return what warns once that the latest images look unlike the training ones; None where those are unknown."""
    training_range = predictor.pipeline.model.config.training_range
    if training_range is None:
        return None
    recent = RecentImages(training_range)

    def warn(name: str) -> None:
        warning = recent.add(predictor.table.rows[name].unlike)
        if warning is not None:
            print(f"Warning: {warning}", file=sys.stderr, flush=True)

    return warn


class StopSignal:
    """While entered, SIGINT and SIGTERM set `requested`; the second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignal:
        # A signal writes a byte, so that one that comes just before a wait ends it too.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._handlers = {one: signal.signal(one, self._request) for one in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for one, handler in self._handlers.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def wait(self, seconds: float) -> None:
        """Sleep, at most until a signal."""
        if self.requested:
            return
        self._reader.settimeout(seconds)
        try:
            self._reader.recv(64)
        except TimeoutError:
            return

    def _request(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class FolderWatcher:
    """
    What is known of the files of watched folders, beside the table.

    `unusable` maps names to the stamp and the reason of files that cannot be decoded. Of files that have a row, or are
    gone, nothing is kept but the table's own.

    Args:
        sources: the paths to watch.
        table: of the predictions.
    """

    def __init__(self, sources: ImageSources, table: PredictionTable) -> None:
        self._sources, self._table = sources, table
        self._pending: dict[str, tuple[Stamp, int]] = {}  # stamp, and how many earlier looks found the same
        self._empty: dict[Path, str] = {}  # paths without an image, and what was printed of them
        self._unreadable: set[str] = set()  # sentences on folders that could not be read at the last look
        self.unusable: dict[str, tuple[Stamp, UnusableImage]] = {}

    def complete_images(self, stop: StopSignal) -> Iterator[LoadedImage]:
        """Look at the folders, and yield the images of complete files that are not decided yet."""
        for name, path in self._find_unchanged():
            if stop.requested:
                return
            stamp, looks = self._pending[name]
            try:
                image = load_image_file(path)
                if file_stamp(path) != stamp:  # written to while it was read
                    continue
            except (OSError, ValueError) as error:
                if looks >= PATIENCE and os.path.exists(path):
                    self._name_unusable(name, stamp, UnusableImage(path, str(error)))
                continue
            self.unusable.pop(name, None)
            yield LoadedImage(name, stamp, image)

    def _find_unchanged(self) -> list[tuple[str, Path]]:
        """Return the undecided files that are as they were at the last look."""
        before, self._pending = self._pending, {}
        unchanged, unreadable = [], []
        for name, path in sorted(self._find(unreadable).items()):
            try:
                stamp = file_stamp(path)
            except PermissionError as error:
                unreadable.append(unreadable_folder(path.parent, error))
                continue
            except OSError:  # gone since, or a link to nothing
                continue
            decided = self._table.rows.get(name)
            if stamp in (decided and decided.stamp, self.unusable.get(name, (None,))[0]):
                continue
            stamp_before, looks = before.get(name, (None, 0))
            self._pending[name] = (stamp, looks + 1 if stamp == stamp_before else 0)
            if stamp == stamp_before:
                unchanged.append((name, path))
        for sentence in sorted(set(unreadable) - self._unreadable):
            print(f"Warning: {sentence} Until then the images in it are left out.", file=sys.stderr, flush=True)
        self._unreadable = set(unreadable)
        return unchanged

    def _find(self, unreadable: list[str]) -> dict[str, Path]:
        """Return all images by name; print when a path has none, or is back. `unreadable` is that of `find`."""
        images: dict[str, Path] = {}
        for path in self._sources.paths:
            sentences: list[str] = []
            found = self._sources.find(path, sentences)
            images |= found
            unreadable += sentences
            if found or sentences:
                if self._empty.pop(path, None) == _GONE:
                    print(f"{path}: it is there again.", flush=True)
                continue
            what = "there is no image in it" if os.path.exists(path) else _GONE
            if self._empty.get(path) != what:
                self._empty[path] = what
                print(f"{path}: {what}; waiting.", flush=True)
        return images

    def _name_unusable(self, name: str, stamp: Stamp, image: UnusableImage) -> None:
        self._table.remove([name])  # of the file that was there before
        self.unusable[name] = (stamp, image)
        print(f"  {image.path}: {image.reason}", file=sys.stderr, flush=True)


__all__ = [
    "LONGEST_WATCH",
    "PATIENCE",
    "SHORTEST_WATCH",
    "FolderWatcher",
    "StopSignal",
    "watch_folders",
]
