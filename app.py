"""
A page in the browser: what a trained classifier says of images, and where it looked.

It needs this file and `space/requirements.txt`, not kgl: the classifier's code travels with its weights. It runs on
one's own machine (`python app.py --help`) and, unchanged, as a Space, where variables take the place of the flags.
"""

import argparse
import base64
import contextlib
import csv
import functools
import html
import io
import json
import logging
import os
import signal
import tempfile
import threading
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps


UPLOAD_BYTES = 20_000_000  # a file
IMAGE_PIXELS = 50_000_000  # an image, by its header, before anything is decoded
LEAST_SIDE = 8  # pixels; there is nothing to see below
REQUEST_IMAGES = 32
MINUTE_IMAGES = 96  # a client
MINUTE_UPLOADS = 60  # requests a client, of any number of files
CLIENTS = 1_000  # of which the limits keep account, those seen last
REQUEST_BYTES = 1_000_000  # of any other request
STORED_BYTES = 2_000_000_000  # of all uploads
QUEUE_LENGTH = 32  # requests of all clients that wait for their turn
SESSIONS = 100  # whose labelled sets are remembered
LABELLED_ROWS = 100_000
EXAMPLES = 12
KEPT_SECONDS = 600  # after which an upload is deleted
SWEEP_SECONDS = 10
SHOWN_SIDE = 800  # pixels of an image as the page shows it
HEAT_SIDE = 256  # pixels of a heat map as the page shows it: it has far fewer cells
STEP = 0.001  # of the operating point's slider

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
SCORE_COLUMNS = ("guided: P(defect)", "defect_score")
HEAT_COLOURS = np.array([(255, 225, 90), (255, 125, 0), (190, 0, 30)], dtype=float)  # at 0, one half and 1
GRADIO_VARIABLES = ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "GRADIO_NUM_PORTS", "GRADIO_ROOT_PATH")  # that count
WRONG = "Something went wrong on the server. Its log says what."

log = logging.getLogger("app")


class Refused(Exception):
    """Something given cannot be used; the message is a sentence for whoever gave it."""


# ---------------------------------------------------------------------------------------------------------- images


def read_image(raw: bytes) -> Image.Image:
    """
    A file's image, upright and in RGB.

    Raises:
        Refused: there is none, it is too large to be decoded at all, or it has more than 8 bits a channel.
    """
    if len(raw) > UPLOAD_BYTES:
        raise Refused(f"the file is larger than {UPLOAD_BYTES // 1_000_000} MB.")
    too_many = f"it has more than {IMAGE_PIXELS // 1_000_000} million pixels."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a limit of our own is below
            image = Image.open(io.BytesIO(raw), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Refused(too_many) from error
    except Exception as error:  # whatever Pillow's many decoders raise for what they do not know
        raise Refused(f"it is no image that can be read here ({', '.join(FORMATS)}).") from error
    with image:
        if image.width * image.height > IMAGE_PIXELS:
            raise Refused(too_many)
        if min(image.size) < LEAST_SIDE:
            raise Refused(f"there is nothing to see below {LEAST_SIDE} pixels.")
        if image.mode.startswith(("I", "F")) or any(";16" in str(tile) for tile in image.tile):
            raise Refused("it has more than 8 bits a channel: convert it to 8.")
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # likewise for what is damaged
            raise Refused("it is damaged.") from error


def data_url(image: Image.Image, format: str, **options: Any) -> str:
    """The image within its address: the page asks for no file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def shrunk(image: Image.Image, side: int) -> Image.Image:
    """The image with a longer side of `side` pixels at most."""
    scale = min(1, side / max(image.size))
    return image.resize([max(1, round(scale * length)) for length in image.size])


def coloured(heat_map: Image.Image) -> Image.Image:
    """A grey heat map in colours, RGBA: the hotter, the redder and the less transparent."""
    heat = np.asarray(heat_map) / 255
    places = np.linspace(0, 1, len(HEAT_COLOURS))
    channels = [np.interp(heat, places, colours) for colours in HEAT_COLOURS.T]
    return Image.fromarray(np.stack([*channels, 255 * heat], axis=-1).round().astype(np.uint8))


# ------------------------------------------------------------------------------------------------------ labelled set


@dataclass(frozen=True)
class Labelled:
    """Images whose class is known: `scores`, P(defect), and `defective`, both `(N,)`, and where they are from."""

    name: str
    scores: np.ndarray
    defective: np.ndarray


@dataclass(frozen=True)
class Confusion:
    """What a threshold makes of a labelled set; a share of nothing is `None`."""

    found: int
    missed: int
    false_alarms: int
    passed: int

    @property
    def recall(self) -> float | None:
        return _share(self.found, self.found + self.missed)

    @property
    def false_alarm_rate(self) -> float | None:
        return _share(self.false_alarms, self.false_alarms + self.passed)

    @property
    def precision(self) -> float | None:
        return _share(self.found, self.found + self.false_alarms)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def confusion(labelled: Labelled, threshold: float) -> Confusion:
    """The counts with everything from `threshold` up called defective."""
    called = labelled.scores >= threshold
    bad = labelled.defective
    return Confusion(*(int(kind.sum()) for kind in (bad & called, bad & ~called, ~bad & called, ~bad & ~called)))


def read_labelled(raw: bytes, name: str, classes: Iterable[str], defect_free: str) -> Labelled:
    """
    A run's predictions.csv: true classes in `label`, P(defect) in one of [`SCORE_COLUMNS`].

    Raises:
        Refused: a column is missing, or a row has a class or a probability that cannot be.
    """
    try:
        table = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
        columns = table.fieldnames or []
        if "label" not in columns:
            raise Refused("it has no column `label`.")
        if "boxes" in columns:
            raise Refused("it is a table of kgl-predict: its `label` is what the classifier says, not what is true.")
        score_column = next((column for column in SCORE_COLUMNS if column in columns), None)
        if score_column is None:
            raise Refused(f"it has none of the columns {' and '.join(f'`{column}`' for column in SCORE_COLUMNS)}.")
        known, scores, defective = set(classes), [], []
        for row in table:
            if len(scores) == LABELLED_ROWS:
                raise Refused(f"it has more than {LABELLED_ROWS:,} rows.")
            if row["label"] not in known:
                raise Refused(f"line {table.line_num}: `label` is {row['label']!r:.80}, no class of the classifier.")
            scores.append(_probability(row[score_column], f"line {table.line_num}: `{score_column}`"))
            defective.append(row["label"] != defect_free)
    except UnicodeDecodeError as error:
        raise Refused("it is no text in UTF-8.") from error
    except csv.Error as error:
        raise Refused(f"it is no CSV: {error}.") from error
    if not scores:
        raise Refused("it has no rows.")
    return Labelled(name, np.array(scores), np.array(defective))


def _probability(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError as error:
        raise Refused(f"{where} is {text!r:.80}, no number.") from error
    if not 0 <= value <= 1:
        raise Refused(f"{where} is {text}: it must lie in 0..1.")
    return value


# ------------------------------------------------------------------------------------------------------------ limits


class Limiter:
    """At most `most` of something in any `seconds`, for each client; clients that were quiet so long are forgotten."""

    def __init__(self, most: int, seconds: float = 60, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._seconds, self._clock = most, seconds, clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()  # in the order in which clients came last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._times)

    def admits(self, client: str, count: int = 1) -> bool:
        """Whether `client` may have `count` more now; if so, they are on its account."""
        with self._lock:
            now = self._clock()
            since = now - self._seconds
            while self._times and next(iter(self._times.values()))[-1] <= since:
                self._times.popitem(last=False)
            times = self._times.get(client, deque())
            while times and times[0] <= since:
                times.popleft()
            if len(times) + count > self._most:
                return False
            times.extend([now] * count)
            self._times[client] = times
            self._times.move_to_end(client)
            if len(self._times) > CLIENTS:
                self._times.popitem(last=False)
            return True


class Store:
    """The folder of uploads, and whatever else the server leaves there: nothing stays for longer than KEPT_SECONDS."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.used = 0  # bytes: what the last sweep left and what has arrived since

    def sweep(self) -> None:
        """Delete what is too old."""
        before, used = time.time() - KEPT_SECONDS, 0
        for path in sorted(self._folder.rglob("*"), reverse=True):  # a folder after what is in it
            with contextlib.suppress(FileNotFoundError):  # the server renames what has arrived
                state = path.lstat()
                if state.st_mtime >= before:
                    used += state.st_size + 4096  # about what even an empty file takes
                elif not path.is_dir():
                    path.unlink()
                elif not any(path.iterdir()):
                    path.rmdir()
        self.used = used

    def keep_swept(self, over: threading.Event, known: list[set[str]]) -> None:
        """Sweep until it is `over`; Gradio's memory of uploads, `known`, would grow for ever too."""
        while not over.wait(SWEEP_SECONDS):
            try:
                self.sweep()
            except OSError:
                log.exception("some uploads could not be deleted; the next sweep tries again")
            for files in known:
                files.clear()


class Gate:
    """ASGI middleware before Gradio's server: what the page asks for goes through, of a bounded size; nothing else."""

    UPLOAD = "/gradio_api/upload"
    POST = (UPLOAD, "/gradio_api/queue/join")
    GET = (
        "", "/", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt",
        "/gradio_api/startup-events", "/gradio_api/app_id", "/gradio_api/queue/data", "/gradio_api/upload_progress",
    )  # fmt: skip
    GET_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/")

    def __init__(self, app: Callable, uploads: Limiter, store: Store) -> None:
        self._app, self._uploads, self._store = app, uploads, store

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root, path = scope.get("root_path", ""), scope["path"]
        if f"{path}/".startswith(f"{root}/"):  # as the routes are looked up
            path = path[len(root) :]
        status, why = self._judged(path, scope)
        if status != 200:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": why.encode()})
            return
        stored, left = path == self.UPLOAD, self._most(path)

        async def counted() -> dict:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if stored:
                self._store.used += len(message.get("body", b""))
            cut = left < 0 or (stored and self._store.used > STORED_BYTES)
            return {"type": "http.disconnect"} if cut else message

        await self._app(scope, counted, send)

    def _most(self, path: str) -> int:
        return REQUEST_IMAGES * UPLOAD_BYTES if path == self.UPLOAD else REQUEST_BYTES

    def _judged(self, path: str, scope: dict) -> tuple[int, str]:
        if scope["method"] in ("GET", "HEAD") and (path in self.GET or path.startswith(self.GET_BELOW)):
            return 200, ""
        if scope["method"] != "POST" or path not in self.POST:
            return 403, "The page does not need this, so it is closed."
        headers, most = dict(scope["headers"]), self._most(path)
        length = headers.get(b"content-length", b"").decode("latin-1")
        if b"transfer-encoding" in headers or not length.isdecimal():
            return 411, "A request has to say how large it is."
        if int(length) > most:
            return 413, f"At most {most // 1_000_000} MB at once."
        if path == self.UPLOAD and self._store.used + int(length) > STORED_BYTES:
            return 503, "There is no room for more uploads now: wait some minutes."
        if path == self.UPLOAD and not self._uploads.admits(scope["client"][0]):
            return 429, "Too many uploads within a minute: wait a little."
        return 200, ""


# -------------------------------------------------------------------------------------------------------------- HTML


def problem_line(name: str, why: str) -> str:
    """What is wrong with something that was given."""
    return f'<p class="problem" role="alert"><b>{html.escape(name)}</b> {html.escape(why)}</p>'


def image_card(name: str, image: Image.Image, said: dict[str, Any], threshold: float) -> str:
    """
    An image under its heat map, with what the pipeline said of it.

    Args:
        image: upright, as large as the heat map.
        said: the pipeline's dictionary.
        threshold: from which P(defect) on the image is called defective; unused where it is `None`.
    """
    width, height = image.size
    boxes = "".join(
        f'<rect x="{box["xmin"]}" y="{box["ymin"]}" width="{box["xmax"] - box["xmin"]}" '
        f'height="{box["ymax"] - box["ymin"]}"/>'
        for box in said["boxes"]
    )
    rows = "".join(
        f"<tr><td>{html.escape(label)}</td><td>{score:.3f}</td>"
        f'<td><span class="bar" style="width:{100 * score:.1f}%"></span></td></tr>'
        for label, score in said["scores"].items()
    )
    label = f"{html.escape(said['label'])}</b> {said['score']:.3f}"
    decided, data = f'<p class="said">Most probable class: <b>{label}</p>', ""
    if (score := said["defect_score"]) is not None:
        data = f' data-score="{score!r}" data-decision="{"defective" if score >= threshold else "good"}"'
        decided = f"""
<p class="decision"><span class="is-defective">✕ Defective</span><span class="is-good">✓ Good</span></p>
<div class="meter" title="The line is the operating point"><span style="width:{100 * score:.2f}%"></span></div>
<p class="said">P(defect) <b>{score:.3f}</b></p>{decided}"""
    return f"""<article class="card"{data}>
<h3>{html.escape(name)}</h3>
<div class="shot" style="aspect-ratio:{width}/{height};max-width:calc(26rem*{width / height:.4f})">
<img class="image" alt="{html.escape(name)}" src="{data_url(shrunk(image, SHOWN_SIDE), "JPEG", quality=88)}">
<img class="heat" alt="Heat map" src="{data_url(coloured(shrunk(said["heat_map"], HEAT_SIDE)), "PNG")}">
<svg class="boxes" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{boxes}</svg>
</div>{decided}
<details><summary>All classes</summary><table class="classes">{rows}</table></details>
</article>"""


def confusion_html(labelled: Labelled | None, threshold: float, problem: str = "") -> str:
    """The counts on the labelled set, after what was wrong with the last file for it."""
    if labelled is None:
        return f'{problem}<p class="hint">Drop a run\'s predictions.csv below to see what a threshold does to it.</p>'
    counts = confusion(labelled, threshold)
    rates = (
        ("Defects found", counts.recall), ("Good ones called defective", counts.false_alarm_rate),
        ("Defects among those called so", counts.precision),
    )  # fmt: skip
    shares = "".join(
        f"<tr><th>{what}</th><td>{'none' if rate is None else f'{100 * rate:.1f} %'}</td></tr>" for what, rate in rates
    )
    return f"""{problem}<p class="hint">{html.escape(labelled.name)}: {len(labelled.scores):,} images</p>
<table class="confusion"><thead><tr><th></th><th>called<br>defective</th><th>called<br>good</th></tr></thead>
<tbody><tr><th>is defective</th><td class="right"><b>{counts.found}</b>found</td>
<td class="wrong"><b>{counts.missed}</b>missed</td></tr>
<tr><th>is good</th><td class="wrong"><b>{counts.false_alarms}</b>false alarms</td>
<td class="right"><b>{counts.passed}</b>passed</td></tr></tbody></table>
<table class="rates">{shares}</table>"""


def point_html(point: dict[str, Any] | None) -> str:
    """Where the stored operating point comes from."""
    if point is None:
        return '<p class="hint">The classifier has none of its own: one half stands in for it.</p>'
    told = f"The classifier's own is {point['threshold']:.3f}"
    if "chosen" in point:
        told += (
            f": {point['chosen']} ({point['defective']} defective, {point['good']} good). There it finds "
            f"{100 * point['recall']:.1f} % of the defects and calls {100 * point['false_alarm_rate']:.1f} % of the "
            "good ones defective"
        )
    return f'<p class="hint">{html.escape(told)}.</p>'


def examples_html(paths: list[Path]) -> str:
    """
    Buttons with small images on them.

    Raises:
        Refused: one of them cannot be used.
    """
    buttons = ""
    for index, path in enumerate(paths):
        try:
            small = shrunk(read_image(path.read_bytes()), 96)
        except Refused as error:
            raise Refused(f"{path.name}: {error}") from error
        name = html.escape(path.stem)
        image = f'<img alt="" src="{data_url(small, "JPEG", quality=85)}">'
        buttons += f'<button type="button" data-index="{index}">{image}<span>{name}</span></button>'
    return f'<p class="hint">Or an example:</p><div class="examples">{buttons}</div>'


CSS = """
.gradio-container { max-width: 1240px !important; }
.layout { display: grid !important; grid-template: "give results" auto "operate results" 1fr / 21rem minmax(0, 1fr); gap: 1.2rem; }
.layout > * { min-width: 0 !important; }
.layout .html-container { padding: 0; }
.layout .hint, .card summary { color: var(--body-text-color-subdued); }
.give { grid-area: give; } .operate { grid-area: operate; } .results { grid-area: results; }
@media (max-width: 800px) { .layout { grid-template: "give" "results" "operate" / minmax(0, 1fr); } }
.give h1, .operate h2 { margin: 0; color: var(--body-text-color); line-height: 1.2; }
.give h1 { font-size: 1.5rem; font-weight: 700; } .operate h2 { font-size: 1.1rem; font-weight: 700; }
.hint { margin: .2rem 0; font-size: .9rem; overflow-wrap: anywhere; }
.empty { padding: 3rem 1rem; text-align: center; border: 1px dashed var(--border-color-primary); border-radius: .6rem; }
.examples { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .5rem; }
.examples button { padding: 0; overflow: hidden; cursor: pointer; border: 1px solid var(--border-color-primary);
  border-radius: .4rem; background: var(--block-background-fill); color: var(--body-text-color); font-size: .8rem; }
.examples button:hover, .examples button:focus-visible { border-color: var(--color-accent); outline: 2px solid var(--color-accent); }
.examples img { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; margin: 0; }
.examples span { display: block; padding: .15rem .3rem; overflow-wrap: anywhere; }
.problem { margin: 0 0 .6rem; padding: .5rem .8rem; border-left: 4px solid #d97706; border-radius: .3rem;
  background: var(--block-background-fill); color: var(--body-text-color); overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 1rem; align-items: start; }
.card { padding: .8rem; border: 1px solid var(--border-color-primary); border-radius: .6rem;
  background: var(--block-background-fill); color: var(--body-text-color); }
.card h3 { margin: 0 0 .5rem; font-size: .95rem; font-weight: 600; overflow-wrap: anywhere; color: inherit; }
.shot { position: relative; width: 100%; margin: 0 auto; overflow: hidden; background: #78716c; }
.shot > * { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; }
.shot .heat { opacity: var(--heat); }
.boxes rect { fill: none; stroke: #00e676; stroke-width: 2px; vector-effect: non-scaling-stroke; }
.card[data-decision=good] .boxes { display: none; }
.decision { margin: .6rem 0 .4rem; font-size: 1.25rem; font-weight: 700; }
.decision span { display: none; padding: .15rem .7rem; border-radius: .4rem; color: #fff; }
.decision .is-defective { background: #b91c1c; } .decision .is-good { background: #15803d; }
.card[data-decision=defective] .is-defective, .card[data-decision=good] .is-good { display: inline-block; }
.meter { position: relative; height: .6rem; border-radius: .3rem; background: var(--border-color-primary); }
.meter span { display: block; height: 100%; border-radius: .3rem; background: #78716c; }
.meter::after { content: ""; position: absolute; top: -.25rem; bottom: -.25rem; width: 3px; margin-left: -1px;
  left: calc(100% * var(--threshold)); background: var(--body-text-color); }
.said { margin: .3rem 0; color: inherit; overflow-wrap: anywhere; }
.card summary { cursor: pointer; font-size: .85rem; }
.classes, .confusion, .rates { width: 100%; border-collapse: collapse; color: var(--body-text-color); font-variant-numeric: tabular-nums; }
.classes td { padding: .15rem .3rem; font-size: .85rem; overflow-wrap: anywhere; } .classes td:last-child { width: 45%; }
.bar { display: block; height: .5rem; min-width: 1px; border-radius: .25rem; background: #78716c; }
.confusion { margin: .4rem 0 .6rem; } .confusion th { padding: .25rem; font-weight: 500; font-size: .85rem; color: inherit; }
.confusion tbody th { text-align: left; white-space: nowrap; }
.confusion td { width: 36%; padding: .45rem .2rem; text-align: center; font-size: .85rem; border: 2px solid var(--border-color-primary); }
.confusion b { display: block; font-size: 1.35rem; line-height: 1.2; }
.confusion .right { background: color-mix(in srgb, #15803d 16%, transparent); }
.confusion .wrong { background: color-mix(in srgb, #b91c1c 16%, transparent); }
.rates th { text-align: left; font-weight: 400; padding: .15rem .25rem; font-size: .9rem; color: inherit; }
.rates td { text-align: right; font-weight: 600; white-space: nowrap; color: inherit; }
"""  # noqa: E501

# Sliders act in the browser at once. The slider stands at the rounded operating point, which means the exact one.
PAGE_JS = """() => {
  const stored = %(stored)s, shown = %(shown)s;
  let threshold = stored;
  window.kglDecide = (value) => {
    if (value !== undefined) threshold = value === shown ? stored : value;
    document.documentElement.style.setProperty('--threshold', threshold);
    for (const card of document.querySelectorAll('.card[data-score]'))
      card.dataset.decision = Number(card.dataset.score) >= threshold ? 'defective' : 'good';
  };
  window.kglDecide();
}"""
RESULTS_JS = "watch('value', () => window.kglDecide())"  # images may arrive after the slider has moved on
POINT_JS = "(value) => window.kglDecide(value)"
HEAT_JS = "(value) => { document.documentElement.style.setProperty('--heat', value); }"
EXAMPLES_JS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-index]');
  if (button) trigger('click', {index: Number(button.dataset.index)});
})"""
EMPTY = '<p class="hint empty">What the classifier says of your images appears here.</p>'


# ---------------------------------------------------------------------------------------------------------- the page


def load(model: str, trusted: bool) -> Callable[[Image.Image], dict[str, Any]]:
    """
    The pipeline of a classifier saved by kgl-train, a folder or a Hub id; its weights are safetensors, never a pickle.

    Raises:
        Refused: there is none, or its code is not trusted.
    """
    if not trusted:
        raise Refused(
            "--trust_remote_code: a classifier's folder holds the code that reads it, and that code runs here; pass "
            "the flag (on a Space KGL_TRUST_REMOTE_CODE=1) if you trust whoever made it."
        )
    if (Path(model) / "final").is_dir():
        raise Refused(f"--model {model}: this is a run's folder; take {Path(model) / 'final'}.")
    from transformers import pipeline

    try:
        return pipeline(
            "defect-detection", model=model, trust_remote_code=True, model_kwargs={"use_safetensors": True}
        )
    except Exception as error:  # whatever its code, or one of many readers, raises
        said = f"{type(error).__name__}: {error}".strip()
        if "Traceback" in said:  # of the last of several attempts
            said = said.splitlines()[-1]
        said = " ".join(said.split())
        raise Refused(f"--model {model}: it cannot be loaded as a classifier of kgl-train. {said}") from error


def uploads_only(component: Any) -> None:
    """Keep a `gradio.File` from fetching a web address that is sent in place of a file."""
    move = component.async_move_resource_to_block_cache

    async def move_upload(path: str | Path | None) -> str | None:
        if str(path).startswith(("http://", "https://")):
            raise ValueError("a web address in place of an upload")
        return await move(path)

    component.async_move_resource_to_block_cache = move_upload


def looked_at(paths: list[Path], inspect: Callable, threshold: float) -> str:
    """A card an image; those that cannot be used are named before them."""
    cards, problems = [], []
    for path in paths:
        try:
            image = read_image(path.read_bytes())
        except Refused as error:
            log.warning("%r: %s", path.name, error)
            problems.append(problem_line(path.name, f"was left out: {error}"))
        else:
            cards.append(image_card(path.name, image, inspect(image), threshold))
    return f'{"".join(problems)}<div class="cards">{"".join(cards)}</div>'


def build(
    inspect: Callable, labelled: Labelled | None, examples: list[Path], store: Store
) -> tuple[Any, dict[str, Any]]:
    """
    The page, a `gradio.Blocks`, and the settings to launch it with.

    Args:
        inspect: the pipeline.
        labelled: what the page starts with.
        examples: images.
        store: of uploads.

    Raises:
        Refused: an example cannot be used.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    def reported(job: Callable) -> Callable:
        """What nobody foresaw is for the log; the page gets one sentence."""

        @functools.wraps(job)
        def run(*args: Any) -> Any:
            try:
                return job(*args)
            except Exception as error:
                log.exception("%s failed", job.__name__)
                raise gr.Error(WRONG, print_exception=False) from error

        return run

    config = inspect.model.config
    stored, shown = config.threshold, round(config.threshold, 3)
    images_a_minute = Limiter(MINUTE_IMAGES)

    def exact(value: float) -> float:
        return stored if value == shown else value

    @reported
    def look(files: list[dict[str, Any]], value: float, request: gr.Request) -> tuple[str, None]:
        return shown_of([Path(file["path"]) for file in files], value, request), None

    @reported
    def look_at_example(value: float, event: gr.EventData, request: gr.Request) -> str:
        chosen = [path for index, path in enumerate(examples) if index == event.index]
        return shown_of(chosen, value, request)

    def shown_of(paths: list[Path], value: float, request: gr.Request) -> str:
        if not paths:
            return EMPTY
        if len(paths) > REQUEST_IMAGES:
            return problem_line(f"{len(paths)} images", f"are too many: at most {REQUEST_IMAGES} at once.")
        if not images_a_minute.admits(request.client.host, len(paths)):
            return problem_line("Too fast:", f"at most {MINUTE_IMAGES} images a minute. Wait a little.")
        return looked_at(paths, inspect, exact(value))

    @reported
    def judge(value: float, known: Labelled | None) -> str:
        return confusion_html(known, exact(value))

    @reported
    def take(file: dict[str, Any], value: float, known: Labelled | None) -> tuple[Labelled | None, str, None]:
        path, problem = Path(file["path"]), ""
        try:
            known = read_labelled(path.read_bytes(), path.name, config.label2id, config.defect_free_label)
        except Refused as error:
            problem = problem_line(path.name, f"cannot be used: {error}")
        return known, confusion_html(known, exact(value), problem), None

    private = {"api_visibility": "private"}
    one_by_one = {"concurrency_id": "look", "concurrency_limit": 1}  # an image of the largest size takes 1 GB
    raw = {"preprocess": False}  # gr.File's would leave an empty file behind for every upload, for good
    with gr.Blocks(title="Surface defects", analytics_enabled=False) as page:
        with gr.Row(elem_classes="layout"):
            with gr.Column(elem_classes="give"):
                classes = html.escape(", ".join(config.label2id))
                gr.HTML(f'<h1>Surface defects</h1><p class="hint">Classes: {classes}</p>', apply_default_css=False)
                upload = gr.File(
                    file_count="multiple", file_types=["image"], height=150, elem_id="images",
                    label=f"Images, up to {REQUEST_IMAGES} of {UPLOAD_BYTES // 1_000_000} MB each",
                )  # fmt: skip
                uploads_only(upload)
                if examples:
                    shelf = gr.HTML(examples_html(examples), js_on_load=EXAMPLES_JS, apply_default_css=False)
            with gr.Column(elem_classes="results"):
                heat = gr.Slider(
                    0, 1, 0.6, step=0.05, label="How much of the heat map shows", elem_id="heat",
                    info="Redder is hotter. Boxes, on what is called defective, surround what is above one half.",
                )  # fmt: skip
                results = gr.HTML(EMPTY, js_on_load=RESULTS_JS, apply_default_css=False, elem_id="results")
            decides = config.defect_free_label is not None
            with gr.Column(elem_classes="operate", visible=decides):
                gr.HTML("<h2>Operating point</h2>", apply_default_css=False)
                point = gr.Slider(0, 1, shown, step=STEP, label="Defective from this P(defect) on", elem_id="point")
                gr.HTML(point_html(config.operating_point), apply_default_css=False)
                table = gr.HTML(confusion_html(labelled, stored), apply_default_css=False, elem_id="confusion")
                dropped = gr.File(file_types=[".csv"], height=150, label="Labelled set (CSV)", elem_id="labelled")
                uploads_only(dropped)
                known = gr.State(labelled)
        upload.upload(look, [upload, point], [results, upload], **one_by_one, **raw, **private)
        if examples:
            shelf.click(look_at_example, point, results, **one_by_one, **private)
        heat.change(None, heat, js=HEAT_JS, **private)
        point.change(None, point, js=POINT_JS, **private)
        point.change(judge, [point, known], table, show_progress="hidden", trigger_mode="always_last", **private)
        dropped.upload(take, [dropped, point, known], [known, table, dropped], **raw, **private)
    page.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=1, api_open=False)

    fonts = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]
    theme = gr.themes.Default(font=fonts, font_mono=[gr.themes.Font("monospace")])
    theme.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")
    settings = {
        "theme": theme,
        "css": f":root {{ --heat: 0.6; --threshold: {stored}; }}{CSS}",
        "js": PAGE_JS % {"stored": json.dumps(stored), "shown": json.dumps(shown)},
        "app_kwargs": {"middleware": [Middleware(Gate, uploads=Limiter(MINUTE_UPLOADS), store=store)]},
        "max_file_size": UPLOAD_BYTES,
        "state_session_capacity": SESSIONS,
        "show_error": False,
        "footer_links": [],
        # What Gradio would turn on by itself, in a notebook or in a Space. Its variables are gone: see `main`.
        "share": False, "run_history": False, "enable_monitoring": False, "pwa": False,
    }  # fmt: skip
    return page, settings


def main() -> None:
    """Serve the page; exit code 2 and one sentence where something given cannot be used."""
    parser = argparse.ArgumentParser(
        prog="app.py", description=__doc__.split("\n\n")[0].strip(), allow_abbrev=False,
        epilog="On a Space: the variables KGL_MODEL, KGL_TRUST_REMOTE_CODE=1, KGL_LABELLED and KGL_EXAMPLES.",
    )  # fmt: skip
    there = Path(__file__).with_name("examples")
    parser.add_argument(
        "--model", default=os.environ.get("KGL_MODEL"), help="A classifier saved by kgl-train: a folder or a Hub id."
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", default=os.environ.get("KGL_TRUST_REMOTE_CODE") == "1",
        help="Run the code in the classifier's folder; without it nothing is loaded.",
    )  # fmt: skip
    parser.add_argument(
        "--labelled", type=Path, default=os.environ.get("KGL_LABELLED"),
        help="A run's predictions.csv, of which the page shows what an operating point does to it.",
    )  # fmt: skip
    parser.add_argument(
        "--examples", type=Path, default=os.environ.get("KGL_EXAMPLES", there if there.is_dir() else None),
        help="A folder of images to try (default: examples/ beside this file, if there).",
    )  # fmt: skip
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for name in [name for name in os.environ if name.startswith("GRADIO_") and name not in GRADIO_VARIABLES]:
        del os.environ[name]  # many turn on what passes by what is decided here
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it, too, deletes the uploads
    with tempfile.TemporaryDirectory(prefix="kgl-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        store, over = Store(Path(folder)), threading.Event()
        try:
            page, settings = prepared(args, store)
        except (Refused, OSError) as error:
            parser.exit(2, f"app.py: error: {error}\n")
        sweeper = threading.Thread(target=store.keep_swept, args=(over, page.temp_file_sets), daemon=True)
        sweeper.start()
        page.launch(**settings)
        over.set()
        sweeper.join()
        store.used = STORED_BYTES + 1  # what still arrives is cut off


def prepared(args: argparse.Namespace, store: Store) -> tuple[Any, dict[str, Any]]:
    """
    Everything given, read and checked, to a page.

    Raises:
        Refused: some of it cannot be used.
    """
    if not args.model:
        raise Refused("--model: say which classifier, a folder of kgl-train or a Hub id (on a Space KGL_MODEL).")
    examples = []
    if args.examples is not None:
        if not args.examples.is_dir():
            raise Refused(f"--examples {args.examples}: there is no such folder.")
        found = sorted(one for one in args.examples.iterdir() if one.suffix.lower() in SUFFIXES and one.is_file())
        examples = found[:EXAMPLES]
    if args.labelled is not None and not args.labelled.is_file():
        raise Refused(f"--labelled {args.labelled}: there is no such file.")
    inspect = load(args.model, args.trust_remote_code)
    config, labelled = inspect.model.config, None
    if args.labelled is not None:
        if config.defect_free_label is None:
            raise Refused("--labelled: the classifier has no defect-free class, so it decides nothing.")
        try:
            labelled = read_labelled(
                args.labelled.read_bytes(), args.labelled.name, config.label2id, config.defect_free_label
            )
        except Refused as error:
            raise Refused(f"--labelled {args.labelled}: {error}") from error
    try:
        return build(inspect, labelled, examples, store)
    except Refused as error:
        raise Refused(f"--examples: {error}") from error


if __name__ == "__main__":
    main()
