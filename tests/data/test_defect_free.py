"""The class without defects."""

import pytest

from kgl.data.defect_free import find_defect_free_class
from kgl.errors import InputError


@pytest.mark.parametrize(
    "name",
    ["good", "OK", "Normal", "free", "no_defect", "No Defects", "defect-free", "DefectFree", "nodefect", "i.O.",
     "non-defective", "Negative", "none", "Gut", "in Ordnung", "bon", "Sans défaut", "sans de\u0301faut",
     "sin defectos", "BUONO", "良品", "合格品", "\uff2f\uff2b", "無欠陥", "정상"],
)  # fmt: skip
def test_usual_names_are_recognised(name):
    found = find_defect_free_class(None, "imagefolder", ["crack", name, "dent"])
    assert (found.label, found.origin) == (name, "recognised")
    assert str(found) == f"{name} (recognised by its name; --defect_free_label changes it)"


@pytest.mark.parametrize(
    "names",
    [
        ["crack", "dent"],
        ["good", "ok"],
        ["not good", "goods"],
        ["n.i.O.", "NG"],
        ["不良品", "不合格"],
        ["ungut", "불량"],
        ["below 0.4", "from 0.4"],
    ],
)
def test_no_name_or_several_are_not_recognised(names):
    found = find_defect_free_class(None, "table", names)
    assert (found.label, found.origin) == (None, "unknown")
    assert str(found) == "not recognised (--defect_free_label names it)"


def test_layouts_know_theirs():
    found = find_defect_free_class(None, "magnetic_tile", ["Free", "Crack"])
    assert (found.label, found.origin) == ("Free", "layout") and str(found) == "Free (known of this layout)"
    found = find_defect_free_class(None, "neu_det", ["crazing", "patches"])
    assert (found.label, found.origin) == (None, "layout")
    part = find_defect_free_class(None, "magnetic_tile", ["Break", "Crack"])
    assert (part.label, part.origin) == (None, "unknown")


def test_the_setting_overrides_name_and_layout():
    for dataset, names in (("imagefolder", ["good", "fine"]), ("magnetic_tile", ["Free", "fine"])):
        found = find_defect_free_class("fine", dataset, names)
        assert (found.label, found.origin) == ("fine", "given") and str(found) == "fine (--defect_free_label)"
        found = find_defect_free_class("none", dataset, names)
        assert (found.label, found.origin) == (None, "given") and str(found) == "none (--defect_free_label)"


def test_none_is_a_class_where_one_has_that_name():
    assert find_defect_free_class("none", "imagefolder", ["none", "good"]).label == "none"


def test_an_unknown_class_is_refused():
    with pytest.raises(InputError, match="--defect_free_label Good: no such class; there are good, bad"):
        find_defect_free_class("Good", "imagefolder", ["good", "bad"])
