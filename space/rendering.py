"""HTML of the page: result cards, decisions on the labelled set, examples. All text is escaped."""

import base64
import html
import io
from typing import Any

import numpy as np
from PIL import Image

from image_files import Example, shrink
from labelled_set import LabelledSet, count_decisions


IMAGE_SIDE = 800  # pixels of an image on the page
SHOWN_SHARE = 0.05  # of the heat map, shown at least where an image is not called good
HEAT_MAP_SIDE = 256  # pixels of a heat map on the page; it has far fewer cells
WIDE = 2.5  # ratio of its sides from which on an image is a strip; a wide one gets the whole width of its column
MAX_RATIO = 10  # of its sides as shown: longer strips are stretched, they would be lines
HEAT_COLOURS = np.array([(255, 225, 90), (255, 125, 0), (190, 0, 30)], dtype=float)  # from the threshold to 1

NO_RESULTS = '<p class="hint empty">Results appear here.</p>'


def data_url(image: Image.Image, format: str, **options: Any) -> str:
    """Encode an image into a `data:` address, so that the server needs to serve no files."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def colour_heat_map(heat_map: Image.Image, threshold: float) -> Image.Image:
    """Colour a grey heat map, RGBA: clear below the threshold, half opaque and yellow at it, opaque and red at 1."""
    heat = np.asarray(heat_map) / 255
    heat = np.where(heat >= threshold, (1 + (heat - threshold) / max(1 - threshold, 1e-6)) / 2, 0)
    values = np.linspace(0.5, 1, len(HEAT_COLOURS))
    channels = [np.interp(heat, values, colours) for colours in HEAT_COLOURS.T]
    return Image.fromarray(np.stack([*channels, 255 * heat], axis=-1).round().astype(np.uint8))


def problem_html(name: str, message: str) -> str:
    """Render the problem with an upload."""
    return f'<p class="problem" role="alert"><b>{html.escape(name)}</b> {html.escape(message)}</p>'


def card_html(
    name: str,
    image: Image.Image,
    prediction: dict[str, Any],
    threshold: float,
    heat_threshold: float,
    look_again: float | None = None,
) -> str:
    """
    Render an image under its heat map, and the prediction.

    Args:
        image: upright, of the heat map's size.
        prediction: the pipeline's output for it.
        threshold: on P(defect); unused where the model has no defect-free class.
        heat_threshold: value of the heat map below which it is not shown.
        look_again: from this P(defect) up to the threshold the image is to be looked at again.
    """
    data, decision = "", ""
    good_below = threshold if look_again is None else min(look_again, threshold)
    if (score := prediction["defect_score"]) is not None:
        word = "defective" if score >= threshold else "look-again" if score >= good_below else "good"
        data = f' data-score="{score!r}" data-decision="{word}"'
        decision = f"""
<p class="decision"><span class="is-defective">✕ Defective</span><span class="is-look-again">? Look again</span>
<span class="is-good">✓ Good</span></p>
<div class="meter" title="P(defect); the line is the threshold"><span style="width:{100 * score:.2f}%"></span></div>
<p class="line">P(defect) <b>{score:.3f}</b></p>"""
    unlike = "; ".join(prediction.get("unlike_training") or [])  # the code of older models does not know
    hint = f'<p class="line">Unlike the training images: <b>{html.escape(unlike)}</b></p>' if unlike else ""
    rows = "".join(
        f"<tr><td>{html.escape(label)}</td><td>{value:.3f}</td>"
        f'<td><span class="bar" style="width:{100 * value:.1f}%"></span></td></tr>'
        for label, value in prediction["scores"].items()
    )
    classes = f"card {strip_shape(image)}".rstrip()
    return f"""<article class="{classes}"{data}>
<h3>{html.escape(name)}</h3>
{_overlay_html(name, image, prediction, heat_threshold, score is not None and score < good_below)}{decision}
<p class="line">Most probable class: <b>{html.escape(prediction["label"])}</b> {prediction["score"]:.3f}</p>{hint}
<details><summary>All class probabilities</summary><table class="classes">{rows}</table></details>
</article>"""


def strip_shape(image: Image.Image) -> str:
    """Return whether an image is a `wide` or a `tall` strip, or neither, which is the empty string."""
    if image.width >= WIDE * image.height:
        return "wide"
    return "tall" if image.height >= WIDE * image.width else ""


def _overlay_html(name: str, image: Image.Image, prediction: dict[str, Any], heat_threshold: float, good: bool) -> str:
    """Render the image, the heat map over it, and the boxes over both."""
    width, height = image.size
    heat_map = shrink(prediction["heat_map"], HEAT_MAP_SIDE)
    highest = float(np.quantile(np.asarray(heat_map), 1 - SHOWN_SHARE)) / 255
    if not good and highest > 0:  # what decided is shown, also below the threshold
        heat_threshold = min(heat_threshold, highest)
    heat_map = colour_heat_map(heat_map, heat_threshold)
    boxes = "".join(
        f'<rect x="{box["xmin"]}" y="{box["ymin"]}" width="{box["xmax"] - box["xmin"]}" '
        f'height="{box["ymax"] - box["ymin"]}"/>'
        for box in prediction["boxes"]
    )
    ratio = min(max(width / height, 1 / MAX_RATIO), MAX_RATIO)
    return f"""<div class="overlay" style="aspect-ratio:{ratio:.4f};max-width:calc(26rem*{ratio:.4f})">
<img class="image" alt="{html.escape(name)}" src="{data_url(shrink(image, IMAGE_SIDE), "JPEG", quality=88)}">
<img class="heat" alt="Heat map" src="{data_url(heat_map, "PNG")}">
<svg class="boxes" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{boxes}</svg>
</div>"""


def confusion_html(labelled_set: LabelledSet | None, threshold: float) -> str:
    """Render the decisions on the labelled set at a threshold."""
    if labelled_set is None:
        return '<p class="hint">Upload predictions.csv of a training run to see the decisions at this threshold.</p>'
    counts = count_decisions(labelled_set, threshold)
    rates = (
        ("Recall (of defective images)", counts.recall),
        ("False-alarm rate (of good images)", counts.false_alarm_rate),
        ("Precision (of defective calls)", counts.precision),
    )
    rows = "".join(
        f"<tr><th>{name}</th><td>{'n/a' if rate is None else f'{100 * rate:.1f} %'}</td></tr>" for name, rate in rates
    )
    return f"""<p class="hint">{html.escape(labelled_set.name)}: {len(labelled_set.scores):,} images</p>
<table class="confusion"><thead><tr><th></th><th>called<br>defective</th><th>called<br>good</th></tr></thead>
<tbody><tr><th>is defective</th><td class="right"><b>{counts.found}</b>found</td>
<td class="wrong"><b>{counts.missed}</b>missed</td></tr>
<tr><th>is good</th><td class="wrong"><b>{counts.false_alarms}</b>false alarms</td>
<td class="right"><b>{counts.passed}</b>passed</td></tr></tbody></table>
<table class="rates">{rows}</table>"""


def operating_point_html(point: dict[str, Any] | None) -> str:
    """Render the threshold that the model stores, and how it was chosen."""
    if point is None:
        return '<p class="hint">The model stores no threshold: 0.5 is the default.</p>'
    text = f"Stored in the model: {point['threshold']:.3f}."
    if "chosen" in point:
        text = (
            f"Stored in the model: {point['threshold']:.3f}, {point['chosen']}. On those images ({point['defective']} "
            f"defective, {point['good']} good): recall {100 * point['recall']:.1f} %, false-alarm rate "
            f"{100 * point['false_alarm_rate']:.1f} %."
        )
    if "look_again_threshold" in point:
        text += f" From {point['look_again_threshold']:.3f} up to the threshold: look again."
    return f'<p class="hint">{html.escape(text)}</p>'


def heat_map_hint(config: Any) -> str:
    """Return how the heat map of a model with this config is read."""
    if not config.has_heat_map:
        return "This model has no heat map."
    shown = f"Shown from its threshold of {config.heat_threshold:.3g} on, red where a defect is most likely."
    return f"{shown} Boxes, in defective images, surround what is shown."


def examples_html(examples: list[Example]) -> str:
    """Render a button per example; `data-index` is its place in the list."""
    buttons = "".join(
        f'<button type="button" class="{strip_shape(one.thumbnail)}" data-index="{index}">'
        f'<img alt="" src="{data_url(one.thumbnail, "JPEG", quality=85)}">'
        f"<span>{html.escape(one.path.stem)}</span></button>"
        for index, one in enumerate(examples)
    )
    return f'<p class="hint">Or choose an example:</p><div class="examples">{buttons}</div>'
