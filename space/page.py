"""The page: its layout in Gradio and what its events do."""

import functools
import html
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

import quotas
from image_files import Example, read_image
from input_error import InputError
from labelled_set import LabelledSet, read_labelled_set
from rate_limiter import RateLimiter
from rendering import (
    NO_RESULTS,
    card_html,
    confusion_html,
    examples_html,
    heat_map_hint,
    operating_point_html,
    problem_html,
)
from request_gate import RequestGate
from unread_answers import UnreadAnswers
from upload_folder import UploadFolder


HERE = Path(__file__).parent
THRESHOLD_STEP = 0.001
SERVER_ERROR = "The server failed on this request. Its log has the details."

RESULTS_JS = "watch('value', () => window.kglDecide())"  # results may arrive after the slider has moved
THRESHOLD_JS = "(value) => window.kglDecide(value)"
OPACITY_JS = "(value) => { document.documentElement.style.setProperty('--heat', value); }"
EXAMPLES_JS = """element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-index]');
  if (button) trigger('click', {index: Number(button.dataset.index)});
})"""

PRIVATE = {"api_visibility": "private"}
ONE_AT_A_TIME = {"concurrency_id": "images", "concurrency_limit": 1}  # an image of the largest size takes 1 GB
UPLOAD_ONLY = {"preprocess": False}  # gr.File's preprocessing makes an empty file per upload and never deletes it

log = logging.getLogger("app")


def log_errors(handler: Callable) -> Callable:
    """Log unexpected errors of an event handler and show one sentence on the page."""

    @functools.wraps(handler)
    def run(*args: Any) -> Any:
        try:
            return handler(*args)
        except Exception as error:
            log.exception("%s failed", handler.__name__)
            raise gr.Error(SERVER_ERROR, print_exception=False) from error

    return run


class EventHandlers:
    """
    What the page's events do.

    `threshold` arguments are the slider's value: at its first position it means the exact stored threshold.
    """

    def __init__(self, pipeline: Callable, examples: list[Example]) -> None:
        self._pipeline, self._examples = pipeline, examples
        self._config = pipeline.model.config
        self._images = RateLimiter(quotas.MAX_IMAGES_PER_MINUTE)

    @log_errors
    def classify_uploads(self, files: list[dict[str, Any]], threshold: float, request: gr.Request) -> tuple[str, None]:
        """Return the results of uploaded images, and clear the upload."""
        return self._classify([Path(file["path"]) for file in files], threshold, request), None

    @log_errors
    def classify_example(self, threshold: float, event: gr.EventData, request: gr.Request) -> str:
        """Return the result of the example whose button was clicked."""
        paths = [example.path for index, example in enumerate(self._examples) if index == event.index]
        return self._classify(paths, threshold, request)

    @log_errors
    def update_confusion(self, threshold: float, labelled_set: LabelledSet | None) -> str:
        """Return the decisions on the labelled set."""
        return confusion_html(labelled_set, self._exact(threshold))

    @log_errors
    def replace_labelled_set(
        self, file: dict[str, Any], threshold: float, labelled_set: LabelledSet | None
    ) -> tuple[LabelledSet | None, str, None]:
        """Return an uploaded labelled set (if unusable, the present one) and its decisions; clear the upload."""
        path, problem = Path(file["path"]), ""
        try:
            labelled_set = read_labelled_set(
                path.read_bytes(), path.name, self._config.label2id, self._config.defect_free_label
            )
        except InputError as error:
            problem = problem_html(path.name, f"cannot be used: {error}")
        return labelled_set, problem + confusion_html(labelled_set, self._exact(threshold)), None

    def _classify(self, paths: list[Path], threshold: float, request: gr.Request) -> str:
        if not paths:
            return NO_RESULTS
        if len(paths) > quotas.MAX_IMAGES_PER_REQUEST:
            return problem_html(f"{len(paths)} images:", f"upload at most {quotas.MAX_IMAGES_PER_REQUEST} at once.")
        if not self._images.admit(request.client.host, len(paths)):
            most = quotas.MAX_IMAGES_PER_MINUTE
            return problem_html("Too many images:", f"at most {most} per minute. Wait a minute and try again.")
        cards, problems = [], []
        for path in paths:
            try:
                image = read_image(path.read_bytes())
            except InputError as error:
                log.warning("%r: %s", path.name, error)
                problems.append(problem_html(path.name, f"was left out: {error}"))
            else:
                exact, heat_threshold = self._exact(threshold), self._config.heat_threshold
                look_again = look_again_threshold(self._config)
                cards.append(card_html(path.name, image, self._pipeline(image), exact, heat_threshold, look_again))
        return f'{"".join(problems)}<div class="cards">{"".join(cards)}</div>'

    def _exact(self, threshold: float) -> float:
        return self._config.threshold if threshold == slider_start(self._config) else threshold


def look_again_threshold(config: Any) -> float | None:
    """Return from which P(defect) on images are to be looked at again, None where the model has no such band."""
    return (config.operating_point or {}).get("look_again_threshold")  # the code of older models has no property


def slider_start(config: Any) -> float:
    """Return the stored threshold, rounded to the slider's steps."""
    return round(config.threshold, 3)


def build_page(pipeline: Callable, labelled_set: LabelledSet | None, examples: list[Example]) -> gr.Blocks:
    """
    Build the page.

    Args:
        pipeline: a defect-detection pipeline.
        labelled_set: shown at the start.
        examples: images to choose from.
    """
    config, handlers = pipeline.model.config, EventHandlers(pipeline, examples)
    delete_cache = (quotas.SWEEP_SECONDS, quotas.UPLOAD_SECONDS)
    with gr.Blocks(title="Surface defects", analytics_enabled=False, delete_cache=delete_cache) as page:
        with gr.Row(elem_classes="layout"):
            with gr.Column(elem_classes="inputs"):
                upload, shelf = _input_column(config, examples)
            with gr.Column(elem_classes="results"):
                opacity = gr.Slider(
                    0, 1, 0.6, step=0.05, label="Heat map opacity", elem_id="heat",
                    info=heat_map_hint(config),
                )  # fmt: skip
                results = gr.HTML(NO_RESULTS, js_on_load=RESULTS_JS, apply_default_css=False, elem_id="results")
            with gr.Column(elem_classes="threshold", visible=config.defect_free_label is not None):
                threshold, table, table_upload = _threshold_column(config, labelled_set)
                labelled = gr.State(labelled_set)
        upload.upload(
            handlers.classify_uploads,
            [upload, threshold],
            [results, upload],
            **ONE_AT_A_TIME,
            **UPLOAD_ONLY,
            **PRIVATE,
        )
        if shelf is not None:
            shelf.click(handlers.classify_example, threshold, results, **ONE_AT_A_TIME, **PRIVATE)
        opacity.change(None, opacity, js=OPACITY_JS, **PRIVATE)
        threshold.change(None, threshold, js=THRESHOLD_JS, **PRIVATE)
        threshold.change(
            handlers.update_confusion, [threshold, labelled], table,
            show_progress="hidden", trigger_mode="always_last", **PRIVATE,
        )  # fmt: skip
        table_upload.upload(
            handlers.replace_labelled_set, [table_upload, threshold, labelled], [labelled, table, table_upload],
            **UPLOAD_ONLY, **PRIVATE,
        )  # fmt: skip
    page.queue(max_size=quotas.MAX_QUEUED_REQUESTS, default_concurrency_limit=1, api_open=False)
    return page


def _input_column(config: Any, examples: list[Example]) -> tuple[gr.File, gr.HTML | None]:
    classes = html.escape(", ".join(config.label2id))
    gr.HTML(f'<h1>Surface defects</h1><p class="hint">Classes: {classes}</p>', apply_default_css=False)
    megabytes = quotas.MAX_FILE_BYTES // 1_000_000
    upload = gr.File(
        file_count="multiple", file_types=["image"], height=150, elem_id="images",
        label=f"Images (at most {quotas.MAX_IMAGES_PER_REQUEST}, {megabytes} MB each)",
    )  # fmt: skip
    refuse_addresses(upload)
    if not examples:
        return upload, None
    return upload, gr.HTML(examples_html(examples), js_on_load=EXAMPLES_JS, apply_default_css=False)


def _threshold_column(config: Any, labelled_set: LabelledSet | None) -> tuple[gr.Slider, gr.HTML, gr.File]:
    gr.HTML("<h2>Decision threshold</h2>", apply_default_css=False)
    threshold = gr.Slider(
        0,
        1,
        slider_start(config),
        step=THRESHOLD_STEP,
        label="Defective if P(defect) is at least",
        elem_id="threshold",
    )
    gr.HTML(operating_point_html(config.operating_point), apply_default_css=False)
    table = gr.HTML(confusion_html(labelled_set, config.threshold), apply_default_css=False, elem_id="confusion")
    upload = gr.File(file_types=[".csv"], height=150, label="Labelled set (CSV)", elem_id="labelled")
    refuse_addresses(upload)
    return threshold, table, upload


def refuse_addresses(component: gr.File) -> None:
    """Keep a `gradio.File` from fetching a web address sent in place of an upload."""
    move = component.async_move_resource_to_block_cache

    async def move_upload(path: str | Path | None) -> str | None:
        if str(path).startswith(("http://", "https://")):
            raise ValueError("a web address in place of an upload")
        return await move(path)

    component.async_move_resource_to_block_cache = move_upload


def launch_settings(page: gr.Blocks, config: Any, folder: UploadFolder) -> dict[str, Any]:
    """Return what `gradio.Blocks.launch` is called with."""
    fonts = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]  # installed ones: nothing is fetched
    theme = gr.themes.Default(font=fonts, font_mono=[gr.themes.Font("monospace")])
    theme.set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300")
    script = (HERE / "page.js").read_text("utf-8")
    start = ", ".join(map(json.dumps, (config.threshold, slider_start(config), look_again_threshold(config))))
    uploads, answers = RateLimiter(quotas.MAX_UPLOADS_PER_MINUTE), UnreadAnswers(page._queue)
    return {
        "theme": theme,
        "css_paths": HERE / "page.css",
        "js": f"() => ({script})({start})",
        "app_kwargs": {"middleware": [Middleware(RequestGate, uploads=uploads, folder=folder, answers=answers)]},
        "max_file_size": quotas.MAX_FILE_BYTES,
        "state_session_capacity": quotas.MAX_SESSIONS,
        "show_error": False,
        "footer_links": [],
        # Gradio turns these on by itself in a notebook or on a Space.
        "share": False, "run_history": False, "enable_monitoring": False, "pwa": False,
    }  # fmt: skip
