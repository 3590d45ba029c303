"""Frozen features: their values, one table for any batch size and number of processes, resuming."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from good_parts_images import PROCESSOR, fitted_model, rows
from tiny import launched, save_noise, stages_model

from kgl.data.images import to_pixel_values
from kgl.errors import InputError
from kgl.knowledge.saliency_priors import model_digest
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.frozen_features import _images_with_cells, fit_cells, write_frozen_features


def write(folder, dataset=None, model=None, batch_size=3):
    dataset = rows() if dataset is None else dataset
    return write_frozen_features(dataset, model or fitted_model(), PROCESSOR, folder / "features", batch_size, 0)


def test_features_are_those_of_the_model(tmp_path):
    model, features = fitted_model(), write(tmp_path)
    pixel_values = to_pixel_values(rows()["image"], PROCESSOR)
    for found, images in ((features.pooled, pixel_values), (features.flipped, pixel_values.flip(3))):
        maps = model.backbone(images).feature_maps
        pooled = torch.cat([part for one in maps for part in (one.mean(dim=(2, 3)), one.amax(dim=(2, 3)))], dim=1)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, pooled.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(features.pooled - features.flipped).max() > 1e-3
    cells = model.saliency_head.cells(model.backbone(pixel_values).feature_maps[:2]).detach().numpy()
    assert features.cells.dtype == np.float16 and features.cell_rows.tolist() == list(range(7))
    np.testing.assert_allclose(features.cells, cells, rtol=2e-3, atol=2e-3)


def test_batch_size_does_not_matter(tmp_path):
    one, other = (write(tmp_path / str(size), batch_size=size) for size in (1, 5))
    np.testing.assert_allclose(one.pooled, other.pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.flipped, other.flipped, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.cells.astype(float), other.cells.astype(float), rtol=2e-3, atol=2e-3)


def test_cells_of_few_images_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("kgl.training.frozen_features.CELL_IMAGES", 2)
    kept = _images_with_cells(np.array([0, 1, 0, 0, 2, 0, 0]), 0, seed=0)
    assert kept[[1, 4]].all() and kept[[0, 2, 3, 5, 6]].sum() == 2
    features = write(tmp_path)
    assert features.cell_rows.tolist() == np.flatnonzero(kept).tolist() and len(features.pooled) == 7
    assert len(features.cells) == 4
    without_good = _images_with_cells(np.array([0, 1, 2, 1]), None, seed=0)
    assert without_good.sum() == 2


def test_finished_table_is_kept_and_other_inputs_are_refused(tmp_path, monkeypatch):
    first = write(tmp_path)
    computed = []
    features = KGLForImageClassification.features
    monkeypatch.setattr(
        KGLForImageClassification, "features", lambda self, *args: computed.append(1) or features(self, *args)
    )
    model = fitted_model()
    computed.clear()
    again = write(tmp_path, model=model)
    assert not computed and np.array_equal(again.cells, first.cells) and np.array_equal(again.pooled, first.pooled)
    for other in ({"dataset": rows([1, 0, 2, 3, 4, 5, 6])}, {"model": stages_model(seed=1)}):
        with pytest.raises(InputError, match="another model, other settings or other images"):
            write(tmp_path, **other)


def test_stopped_pass_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("kgl.knowledge.sharded_map._MIN_SHARD", 3)
    whole, model, computed = write(tmp_path / "whole"), fitted_model(), []
    features = KGLForImageClassification.features

    def stopping(self, pixel_values):
        if len(computed) == 2:  # the images of the first shard and mirrored
            raise KeyboardInterrupt
        computed.append(len(pixel_values))
        return features(self, pixel_values)

    monkeypatch.setattr(KGLForImageClassification, "features", stopping)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "stopped", model=model)
    assert not (tmp_path / "stopped" / "features").exists()
    computed[:] = [0] * 3  # never stops again
    resumed = write(tmp_path / "stopped", model=model)
    assert computed[3:] == [3, 3, 1, 1]
    assert np.array_equal(resumed.pooled, whole.pooled) and np.array_equal(resumed.cells, whole.cells)


IN_EACH_PROCESS = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])
import torch
torch.set_num_threads(1)
from accelerate import PartialState
state = PartialState(cpu=True)
from good_parts_images import PROCESSOR
from tiny import stages_model
from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.training.frozen_features import fit_cells, write_frozen_features
images, folder = sys.argv[2:]
train = load_defect_dataset(DataArguments(data_dir=images, validation_share=0, num_folds=2))["train"]
model = stages_model(id2label={0: "good", 1: "scratch"})
fit_cells(model, train, PROCESSOR, 16, 0, Path(folder) / "cells.safetensors")
features = write_frozen_features(train, model, PROCESSOR, Path(folder) / "features", 16, 0)
assert features.pooled.shape == (140, 96) and len(features.cells) == 140
state.destroy_process_group()
"""


def test_two_processes_write_the_same_table(tmp_path):
    """140 images are three shards."""
    for index in range(280):
        save_noise(tmp_path / "images" / ("good" if index % 4 else "scratch") / f"{index}.png", index)
    (tmp_path / "job.py").write_text(IN_EACH_PROCESS)
    for name, launcher in (("one", [sys.executable]), ("two", launched(2))):
        (tmp_path / name).mkdir()
        arguments = [tmp_path / "job.py", Path(__file__).resolve().parents[1], tmp_path / "images", tmp_path / name]
        done = subprocess.run([*launcher, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = (load_from_disk(tmp_path / name / "features") for name in ("one", "two"))
    assert len(one) == 140 and one[:] == two[:]


def test_cells_are_fitted_to_good_images_where_there_are_any(tmp_path, monkeypatch):
    """Without them, to all."""
    used = []
    monkeypatch.setattr(
        "kgl.training.frozen_features.fit_projection",
        lambda model, batches, count, seed: used.append((count, torch.cat([maps[0] for maps in batches]))),
    )
    pixel_values = to_pixel_values(rows()["image"], PROCESSOR)
    for model, fitted in ((stages_model(), [0, 2, 3, 5, 6]), (stages_model(defect_free_label=None), [*range(7)])):
        fit_cells(model, rows(), PROCESSOR, 2, 0, tmp_path / f"{len(fitted)}.safetensors")
        count, maps = used.pop()
        with torch.no_grad():
            expected = model.eval().features(pixel_values[fitted])[0][0]
        assert count == len(fitted)
        assert sorted(maps.sum(dim=(1, 2, 3)).tolist()) == pytest.approx(
            sorted(expected.sum(dim=(1, 2, 3)).tolist()), rel=1e-4
        )


def test_cells_are_fitted_once(tmp_path, monkeypatch):
    """With other numbers of threads, another fit would differ in its last digits, and its tables be refused."""
    fitted, again = stages_model(), stages_model()
    fit_cells(fitted, rows(), PROCESSOR, 3, 0, tmp_path / "cells.safetensors")
    monkeypatch.setattr("kgl.training.frozen_features.fit_projection", lambda *_: pytest.fail("fitted again"))
    fit_cells(again, rows(), PROCESSOR, 3, 0, tmp_path / "cells.safetensors")
    assert model_digest(again) == model_digest(fitted) != model_digest(stages_model())
    assert [path.name for path in tmp_path.iterdir()] == ["cells.safetensors"]
