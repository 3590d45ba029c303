"""Fonts of figures: names of classes are data, in any script."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font


_OWN = "DejaVu Sans"  # comes with matplotlib


def font_families(names: Sequence[str]) -> list[str]:
    """Return the font families to draw names with: matplotlib's own, then installed ones for letters that it lacks."""
    return [_OWN, *(family for family, _ in _installed_fonts(_missing_letters(names)))]


def legible_names(names: Sequence[str]) -> list[str]:
    """Return the names of the classes as figures show them: `class N`, by index, where no font has all letters."""
    return [
        name if legible else f"class {index}"
        for index, (name, legible) in enumerate(zip(names, are_legible(names), strict=True))
    ]


def are_legible(names: Sequence[str]) -> list[bool]:
    """Return of each name whether fonts have all its letters."""
    missing = _missing_letters(names)
    missing = missing.difference(*(letters for _, letters in _installed_fonts(missing)))
    return [not missing & set(map(ord, name)) for name in names]


def _missing_letters(names: Sequence[str]) -> frozenset[int]:
    """Return the code points that matplotlib's own font lacks."""
    own = FT2Font(font_manager.findfont(_OWN)).get_charmap()
    return frozenset({ord(letter) for name in names for letter in name if not letter.isspace()} - own.keys())


@cache
def _installed_fonts(letters: frozenset[int]) -> tuple[tuple[str, frozenset[int]], ...]:
    """Return the families of as few installed fonts as have letters, each with those that it has."""
    if not letters:
        return ()
    covered: dict[str, frozenset[int]] = {}
    for path in sorted(font_manager.findSystemFonts()):
        try:
            covered[path] = frozenset(letters & FT2Font(path).get_charmap().keys())
        except (OSError, RuntimeError):  # no font, or one of bitmaps
            continue
    fonts = []
    while letters and (best := max(covered, key=lambda path: len(covered[path] & letters), default=None)):
        if not covered[best] & letters:
            break
        font_manager.fontManager.addfont(best)
        fonts.append((FT2Font(best).family_name, covered[best]))
        letters -= covered[best]
    return tuple(fonts)


__all__ = ["are_legible", "font_families", "legible_names"]
