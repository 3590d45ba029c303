"""Tables as users write them: names, separators, encodings and values that look like numbers."""

import os
import shutil

import pandas as pd
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from tiny import count_labels

from kgl.data.arguments import DataArguments
from kgl.data.loading import read_images
from kgl.data.readers import table_files
from kgl.errors import InputError


ROWS = [("good", index) for index in range(12)] + [("scratch", index) for index in range(6)]
LINES = ["image,label", *(f"{label}/{index}.png,{label}" for label, index in ROWS)]


def read(path, **others):
    return read_images(DataArguments(data_file=str(path), **others))


def write(path, lines=LINES, encoding="utf-8"):
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


@pytest.mark.parametrize("name", ["labels[1].csv", "part?.csv", "a*.csv", "a::b.csv", "{a,b}.csv"])
def test_the_name_of_a_table_is_no_pattern(image_folder, name):
    for other in ("labels1.csv", "part1.csv", "ab.csv", "a", "b"):
        write(image_folder / other, [line.replace(",scratch", ",dent") for line in LINES])
    assert read(write(image_folder / name)).class_names == ["good", "scratch"]


@pytest.mark.parametrize("folder", ["[2024] parts", "a::b", "x=1", "zip:"])
def test_the_name_of_a_folder_is_no_pattern(image_folder, folder, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    image_folder.rename(folder)
    write(image_folder.parent / folder / "t.csv")
    for args in ({"data_file": f"{folder}/t.csv"}, {"data_dir": folder}):
        loaded = read_images(DataArguments(**args))
        assert count_labels(loaded.splits["train"]) == {"good": 12, "scratch": 6}
        assert loaded.splits["train"][0]["image"].size == (48, 40)


@pytest.mark.parametrize(
    ("good", "bad"), [("00", "0"), ("1", "01"), ("1E3", "1000"), ("true", "false"), ("no", "yes"), ("1.0", "1")]
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_labels_and_groups_stay_as_they_are_written(image_folder, good, bad, suffix):
    rows = [(f"{label}/{index}.png", good if label == "good" else bad, f"0{index % 3}") for label, index in ROWS]
    if suffix == "csv":
        lines = ["image,label,part", *(",".join(row) for row in rows)]
    else:
        lines = [f'{{"image": "{image}", "label": "{label}", "part": "{part}"}}' for image, label, part in rows]
    loaded = read(write(image_folder / f"t.{suffix}", lines), group_column="part", defect_free_label=good)
    assert count_labels(loaded.splits["train"]) == {good: 12, bad: 6}
    assert set(loaded.splits["train"]["group"]) == {"00", "01", "02"}


def test_label_of_two_lines_is_one_name(image_folder):
    lines = [line.replace(",scratch", ',"deep\nscratch "') for line in LINES]
    assert read(write(image_folder / "t.csv", lines)).class_names == ["deep scratch", "good"]


def test_image_ids_are_paths(image_folder):
    for label, index in ROWS:
        (image_folder / label / f"{index}.png").rename(image_folder / f"{index + 20 * (label == 'good'):03d}")
    lines = ["image,label", *(f"{index + 20 * (label == 'good'):03d},{label}" for label, index in ROWS)]
    assert "000" in read(write(image_folder / "t.csv", lines)).splits["train"]["file_name"][:]


def test_names_of_splits_are_read_in_any_case(image_folder):
    lines = ["image,label,use", *(f"{line},{('Train', 'TEST', 'Val')[row % 3]}" for row, line in enumerate(LINES[1:]))]
    loaded = read(write(image_folder / "t.csv", lines), split_column="use")
    assert {name: len(split) for name, split in loaded.splits.items()} == {"train": 6, "validation": 6, "test": 6}


def test_a_changed_table_with_its_old_time_is_read_again(image_folder):
    table = write(image_folder / "t.csv")
    before = table.stat()
    read(table)
    write(table, [line.replace(",scratch", ",scraped") for line in LINES])
    os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(table).class_names == ["good", "scraped"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_separators_and_encodings(image_folder, separator, encoding):
    shutil.move(image_folder / "scratch", image_folder / "größe, 1")
    lines = [f"{separator.join(('image', 'label', 'note'))}"]
    lines += [f'"{label}/{index}.png"{separator}{label[:5]}{separator}"a,b;c"' for label, index in ROWS]
    lines = [line.replace("scratch", "größe, 1").replace("scrat", "Größe") for line in lines]
    loaded = read(write(image_folder / "t.csv", lines, encoding))
    assert loaded.class_names == ["Größe", "good"]
    assert any("is read as Western European text" in note for note in loaded.notes) == (encoding == "cp1252")


def test_rows_longer_than_the_header_are_refused(image_folder):
    with pytest.raises(InputError, match="Row 3 has 4 cells and the header 2"):
        read(write(image_folder / "t.csv", [*LINES[:3], "good/9.png,good,12,13"]))
    assert (
        len(read(write(image_folder / "t.csv", [LINES[0], *(f"{line}," for line in LINES[1:])])).splits["train"]) == 18
    )


def test_spreadsheets_need_openpyxl_or_an_export(tmp_path, monkeypatch):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    monkeypatch.setattr(table_files, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"spreadsheets need openpyxl \(pip install openpyxl\); or export it as CSV"):
        read(tmp_path / "t.xlsx")


@pytest.mark.parametrize("with_names", [True, False])
def test_a_spreadsheet_is_read_as_text(image_folder, monkeypatch, with_names):
    """Its cells as pandas returns them: empty text, and nan where they hold an error."""
    rows = [["", ""], *([f" {cell} " for cell in line.split(",")] for line in LINES[1 - with_names :]), ["", " "]]
    (image_folder / "t.xlsx").write_bytes(b"PK")
    given = {}
    monkeypatch.setattr(table_files, "find_spec", lambda name: name)
    monkeypatch.setattr(pd, "read_excel", lambda path, **options: given.update(options) or pd.DataFrame(rows))
    loaded = read(image_folder / "t.xlsx")
    assert count_labels(loaded.splits["train"]) == {"good": 12, "scratch": 6}
    assert given == {"header": None, "dtype": str, "keep_default_na": False, "engine": "openpyxl"}
    assert [note for note in loaded.notes if "no line of column names" in note] == [] if with_names else loaded.notes
    rows[3][1] = float("nan")
    with pytest.raises(InputError, match=f"no 'label' in row {2 if with_names else 3}; every row needs a label"):
        read(image_folder / "t.xlsx")


def test_spreadsheets_of_openpyxl(image_folder):
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra [test]")
    book = openpyxl.Workbook()
    for (label, index), line in zip(ROWS, LINES[1:], strict=True):
        book.active.append([line.split(",")[0], "01" if label == "good" else "1", index / 8, None])
    book.active["D25"] = " "  # an edited cell far below
    book.save(image_folder / "t.xlsx")
    assert count_labels(read(image_folder / "t.xlsx").splits["train"]) == {"01": 12, "1": 6}
    book.active.insert_rows(1)
    for column, name in enumerate(("image", "label", "grade"), 1):
        book.active.cell(1, column, name)
    book.save(image_folder / "t.xlsx")
    loaded = read(image_folder / "t.xlsx", label_column="grade", grade_thresholds=[0.5])
    assert count_labels(loaded.splits["train"]) == {"below 0.5": 8, "from 0.5": 10}
    book.active["A21"], book.active["B21"] = None, "good"
    book.save(image_folder / "t.xlsx")
    with pytest.raises(InputError, match=r"t\.xlsx, row 20: column 'image' is empty"):
        read(image_folder / "t.xlsx")
    (image_folder / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(
        InputError, match=r"it is no \.xlsx file, or has a password; save it as \.xlsx without one, or as"
    ):
        read(image_folder / "t.xlsx")


def test_wholly_empty_rows_are_left_out(image_folder):
    empty = {"csv": ["", ",,", '" ",'], "jsonl": ["{}", '{"image": null, "label": ""}']}
    objects = [f'{{"image": "{image}", "label": "{label}"}}' for image, label in (line.split(",") for line in LINES)]
    for suffix, lines in (("csv", LINES), ("jsonl", objects[1:])):
        table = write(image_folder / f"t.{suffix}", [*lines[:9], *empty[suffix], *lines[9:], *empty[suffix]])
        assert len(read(table).splits["train"]) == 18
    frame = pd.DataFrame([line.split(",") for line in LINES[1:]] + [[None, None]] * 2, columns=["image", "label"])
    frame.to_parquet(image_folder / "t.parquet")
    assert len(read(image_folder / "t.parquet").splits["train"]) == 18


@pytest.mark.parametrize(
    ("row", "message"),
    [(",good", "row 4: column 'image' is empty; name the image"), ("good/9.png,", "no 'label' in row 4; every row")],
)
def test_rows_are_counted_with_the_empty_ones(image_folder, row, message):
    with pytest.raises(InputError, match=rf"--data_file .*t\.csv.* {message}"):
        read(write(image_folder / "t.csv", [*LINES[:3], ",", row]))


@pytest.mark.parametrize("line_end", ["\r", "\r\n"])
@pytest.mark.parametrize("kind", ["commas", "spaces", "objects"])
def test_line_ends_of_every_system(image_folder, line_end, kind):
    """And characters that end a line nowhere but in Python's `splitlines`."""
    lines = [line.replace(",scratch", ",sc\x85ratch") for line in LINES]
    if kind == "spaces":
        lines = [line.replace(",", "  ").replace("\x85", '"\x85"') for line in lines[1:]]
    if kind == "objects":
        lines = [
            f'{{"image": "{image}", "label": "{label}"}}' for image, label in (one.split(",") for one in lines[1:])
        ]
    table = image_folder / ("t.jsonl" if kind == "objects" else "t.csv")
    table.write_bytes(line_end.join(lines).encode())
    assert len(read(table).class_names) == 2 and len(read(table).splits["train"]) == 18


@pytest.mark.parametrize("separator", ["|", "\t"])
def test_separator_in_the_first_line(image_folder, separator):
    """As Excel writes it."""
    lines = [line.replace(",", separator) for line in LINES]
    assert read(write(image_folder / "t.csv", [f"sep={separator}", *lines])).class_names == ["good", "scratch"]
    assert read(write(image_folder / "t.csv", [f"SEP={separator}", *lines[1:]])).class_names == ["good", "scratch"]


@pytest.mark.parametrize(
    "value",
    [
        "C:\\photos\\good\\0.png",
        "D:/good/0.png",
        "\\\\line\\share\\good\\0.png",
        "\\photos\\good\\0.png",
        "/mnt/z/good/0.png",
    ],
)
def test_absolute_paths_of_other_machines_get_a_hint(image_folder, value):
    with pytest.raises(InputError) as refused:
        read(write(image_folder / "t.csv", ["image,label", f"{value},good"]))
    folder = image_folder.resolve()
    advice = f"is an absolute path, of another machine or folder; write good/0.png, relative to {folder}."
    assert str(refused.value).endswith(f"row 1: {value} {advice}")


def test_paths_with_backslashes_get_a_hint(image_folder):
    with pytest.raises(InputError, match=r"row 1: there is no good\\0\.png; .* write good/0\.png"):
        read(write(image_folder / "t.csv", [line.replace("/", "\\") for line in LINES]))


def test_home_is_expanded_in_tables(image_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(image_folder))
    write(image_folder / "t.csv", [LINES[0], *(f"~/{line}" for line in LINES[1:])])
    assert read("~/t.csv").splits["train"]["file_name"][0] == "good/0.png"


@pytest.mark.parametrize("kind", ["Image", "struct", "bytes", "paths"])
def test_parquet_with_images(image_folder, kind):
    files = [image_folder / label / f"{index}.png" for label, index in ROWS]
    cells = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    if kind == "bytes":
        cells = [cell["bytes"] for cell in cells]
    if kind == "paths":
        cells = [{"bytes": None, "path": str(file.relative_to(image_folder))} for file in files]
    feature = {"Image": ImageFeature(), "bytes": Value("binary")}.get(
        kind, {"bytes": Value("binary"), "path": Value("string")}
    )
    features = Features(image=feature, label=Value("string"))
    rows = Dataset.from_dict({"image": cells, "label": [label for label, _ in ROWS]}, features=features)
    rows.to_parquet(image_folder / "t.parquet")
    loaded = read(image_folder / "t.parquet")
    split = loaded.splits["train"]
    assert count_labels(split) == {"good": 12, "scratch": 6} and split[0]["image"].size == (48, 40)
    first = {"Image": "1-0.png", "struct": "1-0.png", "bytes": "1", "paths": "good/0.png"}
    assert split["file_name"][0] == first[kind]


def test_categories_of_pandas_are_labels(image_folder):
    frame = pd.DataFrame([line.split(",") for line in LINES[1:]], columns=["image", "label"])
    frame.astype({"label": "category"}).to_parquet(image_folder / "t.parquet")
    assert read(image_folder / "t.parquet").class_names == ["good", "scratch"]


def test_lines_without_column_names(image_folder):
    """As in the list of the solar-cell set ELPV."""
    lines = [
        f"{label}/{index}.png  {float(label != 'good')}   {'mono' if index % 2 else 'poly'}" for label, index in ROWS
    ]
    grades = {"grade_thresholds": [0.5], "grade_names": ["working", "broken"], "defect_free_label": "working"}
    table = write(image_folder / "labels.csv", lines)
    loaded = read(table, **grades, group_column="3")
    assert count_labels(loaded.splits["train"]) == {"working": 12, "broken": 6}
    assert "it has no line of column names; column 1 is the image and column 2 the label" in loaded.notes[0]
    assert set(loaded.splits["train"]["group"]) == {"mono", "poly"}
    assert read(table, label_column="3").class_names == ["mono", "poly"]
    with pytest.raises(InputError, match=r"no column '4' \(--label_column\); it has 1, 2, 3, image, label"):
        read(table, label_column="4")


@pytest.mark.parametrize(
    ("lines", "columns"),
    [
        ([f"{label}/{index}.png,{label}" for label, index in ROWS], {}),
        ([f"{label}\t {label}/{index}.png " for label, index in ROWS], {"image_column": "2", "label_column": "1"}),
        ([f'"{label}/{index}.png" "{label}"' for label, index in ROWS], {}),
        (["image label", *(f"{label}/{index}.png \t {label}" for label, index in ROWS)], {}),
        (["label, image", *(f'{label}, "{label}/{index}.png"' for label, index in ROWS)], {}),
        (["", *LINES], {}),
    ],
)
def test_separators_and_column_names_are_recognised(image_folder, lines, columns):
    loaded = read(write(image_folder / "t.txt", lines), **columns)
    assert count_labels(loaded.splits["train"]) == {"good": 12, "scratch": 6}


def test_spaces_in_names_separate_nothing(image_folder):
    (image_folder / "scratch").rename(image_folder / "deep scratch")
    lines = [line.replace("scratch", "deep scratch") for line in LINES]
    for given in (lines, lines[1:]):
        assert read(write(image_folder / "t.csv", given)).class_names == ["deep scratch", "good"]
