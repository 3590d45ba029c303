"""The class without defects: given, known of a published layout, or recognised by its name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from .readers.layouts import LAYOUTS


# Compared without case, accents, spaces and separators. "negative" is a crack set's class without cracks, "none" that
# of a wafer set.
USUAL_NAMES = frozenset({
    "good", "ok", "okay", "io", "normal", "free", "clean", "intact", "flawless", "undamaged", "healthy", "pass",
    "passed", "negative", "none", "faultfree", "faultless", "defectfree", "defectless", "nodefect", "nodefects",
    "nondefect", "nondefective", "notdefective", "withoutdefect", "withoutdefects", "acceptable", "accepted",
    "gut", "gutteil", "gutteile", "inordnung", "fehlerfrei", "einwandfrei", "intakt",
    "bon", "bonne", "bons", "bonnes", "conforme", "sansdefaut", "sansdefauts",
    "bueno", "buena", "buenos", "buenas", "aceptable", "sindefecto", "sindefectos",
    "buono", "buona", "buoni", "accettabile", "senzadifetti", "nessundifetto",
    "良品", "合格", "合格品", "正常", "无缺陷", "無缺陷", "無欠陥", "欠陥なし", "양품", "정상", "합격",
})  # fmt: skip
SWITCHED_OFF = "none"


@dataclass(frozen=True)
class DefectFreeClass:
    """
    The class without defects and how it was found.

    Args:
        label: its name, None where there is no such class.
        origin: `given`, `layout` (known of a published layout), `recognised` (by its name) or `unknown`.
    """

    label: str | None
    origin: str

    def __str__(self) -> str:
        return {
            "given": f"{self.label or SWITCHED_OFF} (--defect_free_label)",
            "layout": f"{self.label or 'none'} (known of this layout)",
            "recognised": f"{self.label} (recognised by its name; --defect_free_label changes it)",
            "unknown": "not recognised (--defect_free_label names it)",
        }[self.origin]


def find_defect_free_class(given: str | None, dataset: str, class_names: Sequence[str]) -> DefectFreeClass:
    """
    Return the class without defects: the given one, else the layout's, else the only one with a usual name.

    Args:
        given: the value of `--defect_free_label`; `none` for no such class, unless a class has that name.
        dataset: the kind of dataset, one of [`~kgl.data.arguments.DATASETS`].
        class_names: all classes.

    Raises:
        InputError: no class has the given name.
    """
    if given is not None:
        if given == SWITCHED_OFF and given not in class_names:
            return DefectFreeClass(None, "given")
        if given not in class_names:
            raise InputError(f"--defect_free_label {given}: no such class; there are {', '.join(class_names)}.")
        return DefectFreeClass(given, "given")
    if dataset in LAYOUTS and LAYOUTS[dataset].defect_free_label in (None, *class_names):  # a part of it may lack it
        return DefectFreeClass(LAYOUTS[dataset].defect_free_label, "layout")
    usual = {_normalize(name) for name in USUAL_NAMES}
    recognised = [name for name in class_names if _normalize(name) in usual]
    if len(recognised) != 1:
        return DefectFreeClass(None, "unknown")
    return DefectFreeClass(recognised[0], "recognised")


def _normalize(name: str) -> str:
    """Return a name without case, accents, spaces, separators and full-width forms."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKD", name)).casefold()


__all__ = ["SWITCHED_OFF", "USUAL_NAMES", "DefectFreeClass", "find_defect_free_class"]
