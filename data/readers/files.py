"""File helpers shared by the readers of published layouts."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import InputError


def require_files(paths: list[Path]) -> list[Path]:
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{len(missing)} masks are missing, the first is {missing[0]}.")
    return paths


def number_in_name(text: str) -> int:
    return int(re.sub(r"\D", "", text) or 0)
