"""Images, folds and fingerprints of the bench's tasks."""

from dataclasses import replace

from kgl.benchmarks.evidence import task_data
from kgl.benchmarks.evidence.plan import TASKS
from kgl.data.images import without_decoding


def test_binary_task_has_the_folds_of_all_classes(monkeypatch):
    monkeypatch.setitem(TASKS, "smoke defect", replace(TASKS["smoke"], binary=True))
    all_classes, binary = task_data.load_images("smoke"), task_data.load_images("smoke defect")
    assert binary.features["label"].names == ["good", "defect"] and set(binary["label"]) == {0, 1}
    assert all_classes["digest"][:] == binary["digest"][:] and all_classes["fold"][:] == binary["fold"][:]
    assert set(binary["fold"]) == {0, 1, 2}


def test_fingerprints_change_with_the_data(tmp_path, monkeypatch):
    """Features depend on the images; runs also on masks and groups, but not on the groups' names."""
    written = []
    monkeypatch.setattr(task_data, "cache_frozen_features", lambda path, *_: written.append(path))
    images = task_data.load_images("smoke")
    masks = without_decoding(images)["mask"]
    first = next(row for row, mask in enumerate(masks) if mask is not None)
    without_mask = images.remove_columns("mask").add_column(
        "mask", [None if row == first else mask for row, mask in enumerate(masks)], feature=images.features["mask"]
    )
    groups = [f"{group} renamed" for group in images["group"]]
    renamed = images.remove_columns("group").add_column("group", groups)
    merged = images.remove_columns("group").add_column("group", [groups[1], *groups[1:]])
    fingerprints = []
    for changed in (images, renamed, without_mask, merged, images.select([*range(len(images) - 1), 0])):
        monkeypatch.setattr(task_data, "load_images", lambda _, changed=changed: changed)
        task_data.load_features.__wrapped__("smoke", tmp_path)
        fingerprints.append(task_data.data_fingerprint.__wrapped__("smoke"))
    assert len(set(written[:4])) == 1 and written[4] != written[0]
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 4
