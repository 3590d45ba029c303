"""Defect masks as arrays and on grids."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from kgl.data.masks import count_masks, drop_masks, mask_to_array, mask_to_grid
from kgl.data.schema import defect_dataset


@pytest.mark.parametrize("kind", ["255", "1", "numbered", "palette", "bits", "65535", "300"])
def test_masks_of_every_format(kind):
    truth = np.zeros((8, 8), dtype=bool)
    truth[2:4, 3:7] = True
    mask = {
        "255": Image.fromarray(truth * np.uint8(255)),
        "1": Image.fromarray(truth * np.uint8(1)),
        "numbered": Image.fromarray(truth * np.uint8(5)),
        "palette": Image.fromarray(truth * np.uint8(2), mode="P"),
        "bits": Image.fromarray(truth),
        "65535": Image.fromarray(truth * np.uint16(65535)),
        "300": Image.fromarray(truth * np.uint16(300)),
    }[kind]
    if kind == "palette":
        mask.putpalette([0, 0, 0, 9, 9, 9, 60, 0, 0])
    assert np.array_equal(mask_to_array(mask, (8, 8)), truth)
    assert np.array_equal(mask_to_array(mask, (16, 16)), truth.repeat(2, 0).repeat(2, 1))


def square(size=24):
    """A defect away from the border, `(size, size)` bool."""
    truth = np.zeros((size, size), dtype=bool)
    truth[6:14, 8:18] = True
    return truth


def test_compression_noise_in_a_mask_is_no_defect():
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20), dtype=np.uint8)
    pixels[[0, -1]] = pixels[:, [0, -1]] = 0
    noisy = np.where(pixels > 128, 200, 40) + pixels % 8  # more values than class numbers have
    assert np.array_equal(mask_to_array(Image.fromarray(noisy.astype(np.uint8)), (24, 20)), pixels > 128)


@pytest.mark.parametrize("inverted", [False, True])
def test_compressed_masks(inverted):
    truth, content = square(), io.BytesIO()
    Image.fromarray((truth != inverted) * np.uint8(255)).save(content, "jpeg", quality=75)
    assert np.array_equal(mask_to_array(Image.open(content), (24, 24)), truth)


@pytest.mark.parametrize(
    "colour",
    [(255, 0, 0), (0, 0, 255), (250, 50, 83), (128, 0, 0), (0, 64, 0), (16, 16, 16), (127, 127, 127), (1, 1, 1)],
)
@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (90, 10, 30)])
def test_coloured_masks_and_backgrounds(colour, background):
    truth = square()
    mask = Image.fromarray(np.where(truth[..., None], colour, background).astype(np.uint8))
    for one in (mask, mask.convert("RGBA"), mask.convert("CMYK"), mask.quantize(4, dither=Image.Dither.NONE)):
        assert np.array_equal(mask_to_array(one, (24, 24)), truth), one.mode


@pytest.mark.parametrize("value", [16, 50, 100, 127, 254])
def test_dim_and_soft_masks(value):
    truth = square()
    assert np.array_equal(mask_to_array(Image.fromarray(truth * np.uint8(value)), (24, 24)), truth)
    ramp = np.abs(np.linspace(-1, 1, 25))[:24]  # a soft edge: the half of its peak counts
    soft = Image.fromarray(np.round((1 - np.maximum(ramp[:, None], ramp)) * value).astype(np.uint8))
    shown = mask_to_array(soft, (24, 24)).mean()
    assert 0.15 < shown < 0.35 and mask_to_array(soft, (24, 24))[12, 12]


@pytest.mark.parametrize("colour", [(126, 126, 126), (127, 127, 127), (128, 0, 0), (0, 128, 0), (30, 30, 30)])
def test_compressed_masks_of_any_brightness(colour):
    """The noise of compression lifts the largest value, and must not move what counts as marked."""
    rows, columns = np.mgrid[:96, :96]
    truth = ((rows - 48) / 30) ** 2 + ((columns - 44) / 20) ** 2 < 1
    for quality in (75, 90, 95):
        content = io.BytesIO()
        drawn = (truth[..., None] * np.array(colour)).astype(np.uint8)
        Image.fromarray(drawn).save(content, "jpeg", quality=quality)
        found = mask_to_array(Image.open(content), (96, 96))
        assert (found & truth).sum() > 0.98 * (found | truth).sum()


def test_ringing_of_strong_compression_is_no_defect():
    """Thin lines at low quality: what compression leaves around them is weaker than half, and small."""
    truth, content = np.zeros((128, 128), dtype=bool), io.BytesIO()
    for step in range(100):
        truth[14 + step, 10 + step // 2 : 14 + step // 2] = True
    truth[30:34, 70:110] = True
    for quality in (30, 50):
        Image.fromarray(truth * np.uint8(255)).save(content, "jpeg", quality=quality)
        found = mask_to_array(Image.open(content), (128, 128))
        near = np.asarray(Image.fromarray(truth).convert("L").filter(ImageFilter.MaxFilter(5))) > 0
        assert not (found & ~near).any() and (found & truth).sum() > 0.97 * truth.sum()
        content = io.BytesIO()


@pytest.mark.parametrize("levels", [range(40, 241, 40), range(20, 121, 20), (255, 60)])
@pytest.mark.parametrize("change", ["none", "blurred", "compressed"])
def test_weak_parts_beside_strong_ones(levels, change):
    """Each part counts from half of its own peak on."""
    mask, truth = np.zeros((120, 120), dtype=np.uint8), np.zeros((120, 120), dtype=bool)
    for number, level in enumerate(levels):
        top, left = 10 + 60 * (number // 3), 8 + 38 * (number % 3)
        mask[top : top + 30, left : left + 24], truth[top : top + 30, left : left + 24] = level, True
    image, content = Image.fromarray(mask), io.BytesIO()
    if change == "blurred":
        image = image.filter(ImageFilter.GaussianBlur(1))
    if change == "compressed":
        image.save(content, "jpeg", quality=90)
        image = Image.open(content)
    found = mask_to_array(image, (120, 120))
    assert (found & truth).sum() > 0.95 * (found | truth).sum()


def test_several_classes_in_one_mask():
    truth = square()
    classes = truth * np.uint8(40)
    classes[8:10, 10:12] = 200
    assert np.array_equal(mask_to_array(Image.fromarray(classes), (24, 24)), truth)
    assert np.array_equal(mask_to_array(Image.fromarray(classes.astype(np.int32)), (24, 24)), truth)


@pytest.mark.parametrize("colour", [0, 255])
def test_masks_in_the_alpha_channel(colour):
    truth = square()
    grey = np.full((24, 24), colour, dtype=np.uint8)
    for marked in (truth, ~truth):  # drawn on transparency, or erased
        mask = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(marked * np.uint8(255))])
        for one in (mask, mask.convert("RGBA")):
            assert np.array_equal(mask_to_array(one, (24, 24)), truth)


def test_a_palette_with_a_transparent_colour():
    truth = square()
    mask = Image.fromarray(truth.astype(np.uint8), mode="P")
    mask.putpalette([0, 0, 0, 0, 0, 0])
    content = io.BytesIO()
    mask.save(content, "png", transparency=0)
    assert np.array_equal(mask_to_array(Image.open(content), (24, 24)), truth)


def test_inverted_masks_and_masks_of_one_value():
    truth = square()
    assert np.array_equal(mask_to_array(Image.fromarray(~truth), (24, 24)), truth)
    touching = square()
    touching[:, :13] = True  # half of the border
    assert np.array_equal(mask_to_array(Image.fromarray(touching), (24, 24)), touching)
    for value in (0, 1, 255):
        mask = Image.fromarray(np.full((24, 24), value, dtype=np.uint8))
        assert mask_to_array(mask, (24, 24)).all() == mask_to_array(mask, (24, 24)).any() == (value > 0)


def test_no_mask_stays_none():
    assert mask_to_array(None, (8, 8)) is None


def test_a_cell_is_defect_where_any_pixel_is():
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, 3, 4] = True
    assert mask_to_grid(masks, (2, 2)).tolist() == [[[False, True], [False, False]], [[False, False], [False, False]]]


def test_dropped_masks_leave_the_column():
    mask = np.full((24, 24), 255, dtype=np.uint8)
    rows = defect_dataset(images=[mask] * 2, labels=["a", "a"], names=["a"], masks=[mask, None], file_names=["x", "y"])
    assert count_masks(rows) == 1
    unmarked = drop_masks(rows)
    assert count_masks(unmarked) == 0 and unmarked.column_names == rows.column_names
