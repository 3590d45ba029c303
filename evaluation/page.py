"""What the HTML pages are made of: templates, and images inside the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image as PILImage


def render_template(package: str, name: str, /, **values: Any) -> str:
    """
    Return a template of a package, such as `kgl.labelling`, filled in; its text is escaped.

    It may include templates of `kgl.evaluation`.
    """
    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("kgl.evaluation", ".")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template(name).render(**values)


def data_uri(kind: str, content: bytes) -> str:
    """Return an image as a `data:` URI; `kind` is its MIME subtype, such as `jpeg`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def jpeg_uri(pixels: np.ndarray) -> str:
    """Return pixels, `(h, w)` or `(h, w, 3)` uint8, as the `data:` URI of a JPEG."""
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return data_uri("jpeg", buffer.getvalue())


__all__ = ["data_uri", "jpeg_uri", "render_template"]
