"""Handler of Hugging Face Inference Endpoints: images in a request, the defect-detection pipeline's answer as JSON."""

from __future__ import annotations

import base64
import math
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import pipeline


MAX_IMAGES_PER_REQUEST = 32
MAX_FILE_BYTES = 20_000_000
MAX_IMAGE_PIXELS = 50_000_000  # read from the header, before anything is decoded
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
BATCH_SIZE = 8
REQUEST_KEYS = ("inputs", "parameters")
PARAMETERS = ("box_threshold",)


class EndpointHandler:
    """
    Custom handler of Inference Endpoints, whose server loads it from `handler.py` in a model's repository.

    Errors are raised: the server answers with status 400 and `{"error": message}`.

    Args:
        path: the model's folder; that of this file by default. Its own code is run, and its weights are safetensors.

    Example:
    ```python
    >>> handler = EndpointHandler("runs/mine/final")
    >>> handler({"inputs": base64_text, "parameters": {"box_threshold": 0.7}})["decision"]
    'defective'
    ```
    """

    def __init__(self, path: str = "") -> None:
        self.pipeline = pipeline(
            "defect-detection",
            model=path or str(Path(__file__).parent),
            trust_remote_code=True,
            model_kwargs={"use_safetensors": True},
        )

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | list[dict[str, Any]]:
        """
        Return the pipeline's dictionary of each image, with `heat_map` as the base64 text of a grey PNG file.

        Args:
            data: the request: `inputs`, one image or a list of them, each as base64 text of an image file (also a
                `data:` address), as the file's bytes, or as a PIL image, which the server makes of a request whose
                Content-Type is an image's; and `parameters` (*optional*), those of the pipeline: `box_threshold`.

        Returns:
            One dictionary, or a list of them where `inputs` is a list.

        Raises:
            ValueError: the request cannot be answered; one sentence names what is wrong and the mend. If one image
                cannot be used, none is answered.
        """
        _refuse_unknown("the request", data, REQUEST_KEYS)
        parameters = _read_parameters(data.get("parameters") or {})
        inputs = data.get("inputs")
        one = not isinstance(inputs, list)
        named = {"inputs": inputs} if one else {f"inputs[{index}]": value for index, value in enumerate(inputs)}
        if not 1 <= len(named) <= MAX_IMAGES_PER_REQUEST:
            raise ValueError(f"inputs: {len(named)} images; send 1 to {MAX_IMAGES_PER_REQUEST} in one request.")
        checked = {name: _check_header(name, value) for name, value in named.items()}
        # A generator, so that only the images of one batch are in memory.
        images = (_decode(name, image) for name, image in checked.items())
        outputs = [_to_json(output) for output in self.pipeline(images, batch_size=BATCH_SIZE, **parameters)]
        return outputs[0] if one else outputs


def _refuse_unknown(where: str, given: Any, known: tuple[str, ...]) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: {type(given).__name__} in place of an object; send {' and '.join(known)} by name.")
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ValueError(f"{where}: {unknown[0]!r:.80} is unknown; leave it out, known is {' and '.join(known)}.")


def _read_parameters(parameters: Any) -> dict[str, float]:
    """Return the parameters as the pipeline takes them; those in a URL come as text."""
    _refuse_unknown("parameters", parameters, PARAMETERS)
    threshold = parameters.get("box_threshold")
    if threshold is None:
        return {}
    try:
        value = float(threshold)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(threshold, bool) or not 0 <= value <= 1:
        raise ValueError(f"parameters: box_threshold is {threshold!r:.80}; it must be a number in 0..1.")
    return {"box_threshold": value}


def _check_header(name: str, value: Any) -> bytes | Image.Image:
    """Return an input as a file's bytes or a PIL image, whose size and mode are within the limits."""
    if isinstance(value, Image.Image):
        _check_image(name, value)
        return value
    if isinstance(value, str):
        text = value.partition(",")[2] if value.startswith("data:") else value
        try:
            value = base64.b64decode("".join(text.split()), validate=True)  # base64 tools break lines
        except ValueError as error:
            raise ValueError(
                f"{name}: the text is not base64; encode the image file (paths and addresses are not read)."
            ) from error
    if not isinstance(value, bytes):
        raise ValueError(f"{name}: {type(value).__name__} in place of an image; send the file as base64 text.")
    if len(value) > MAX_FILE_BYTES:
        raise ValueError(f"{name}: the file is larger than {MAX_FILE_BYTES // 1_000_000} MB; compress or crop it.")
    try:
        image = Image.open(BytesIO(value), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(_too_many_pixels(name)) from error
    except Exception as error:  # Pillow's decoders raise many types on unknown files
        raise ValueError(f"{name}: the file is not a readable image; use one of {', '.join(FORMATS)}.") from error
    _check_image(name, image)
    return value


def _check_image(name: str, image: Image.Image) -> None:
    """Refuse what the pipeline refuses too, but by name, and images too large for a request."""
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ValueError(_too_many_pixels(name))
    if is_deeper_than_8_bits(image):
        raise ValueError(f"{name}: the image has more than 8 bits per channel; convert it to 8.")


def is_deeper_than_8_bits(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits per channel, which a conversion to RGB would clip to white."""
    tiles = getattr(image, "tile", [])  # of a file's 16-bit colours Pillow drops the lower bytes
    return image.mode.startswith(("I", "F")) or any(";16" in str(tile) for tile in tiles)


def _too_many_pixels(name: str) -> str:
    return f"{name}: the image has more than {MAX_IMAGE_PIXELS // 1_000_000} million pixels; resize or crop it."


def _decode(name: str, image: bytes | Image.Image) -> Image.Image:
    """Return an image with its pixels decoded."""
    if isinstance(image, bytes):
        image = Image.open(BytesIO(image), formats=FORMATS)
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ValueError(f"{name}: the file is damaged; save it again.") from error
    return image


def _to_json(output: dict[str, Any]) -> dict[str, Any]:
    """Return the pipeline's output with the heat map as base64 text, as the server itself writes PIL images."""
    png = BytesIO()
    output["heat_map"].save(png, format="PNG")
    return output | {"heat_map": base64.b64encode(png.getvalue()).decode()}


__all__ = ["EndpointHandler", "is_deeper_than_8_bits"]
