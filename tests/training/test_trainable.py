"""Trainer settings that cannot work are refused before the folder is claimed; those that can, train."""

import pytest
from jobs import write_recipe
from tiny import TINY_BACKBONES, make_images, save_noise, tiny_model

from kgl.cli.train import parse
from kgl.errors import InputError
from kgl.train import run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gradient_checkpointing", "true"], "the backbone resnet does not support it"),
        (["--seed", "-1"], r"--seed -1: it must lie in 0\.\."),
        (["--data_seed", "-3"], r"--data_seed -3: it must lie in 0\.\."),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers -1: it must be at least 0"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps 0: it must be at least 1"),
        (["--optim", "galore_adamw"], "--optim galore_adamw: .*galore_torch"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "--lr_scheduler_type cosine_with_min_lr: .*min_lr"),
        (["--remove_unused_columns", "true"], "--remove_unused_columns"),
        (["--neftune_noise_alpha", "5"], "--neftune_noise_alpha: it has no effect"),
        (["--use_liger_kernel", "true"], "--use_liger_kernel: it has no effect"),
        (["--fp16", "true"], "--fp16 true: it needs a GPU"),
        (["--dataloader_drop_last", "true", "--per_device_train_batch_size", "64"], "less than one batch of 64"),
    ],
)
def test_unusable_trainer_settings(arguments, message, tmp_path):
    recipe = write_recipe(tmp_path, data_dir=str(make_images(tmp_path / "images")))
    with pytest.raises(InputError, match=message):
        run(parse([recipe, "--output_dir", str(tmp_path / "out"), *arguments]))
    assert not (tmp_path / "out").exists()


def test_gradient_checkpointing_where_the_backbone_supports_it(tmp_path, few_draws):
    assert tiny_model("swin").supports_gradient_checkpointing
    assert not tiny_model("resnet").supports_gradient_checkpointing
    reports = []
    for checkpointing in (True, False):
        folder = tmp_path / str(checkpointing)
        folder.mkdir()
        recipe = write_recipe(
            folder, data_dir=str(make_images(folder / "images")), output_dir=str(folder / "out"), out_features=None,
            backbone_config=TINY_BACKBONES["swin"].to_dict(), num_train_epochs=1, image_width=32, seed=0,
            gradient_checkpointing=checkpointing, prior_method="layercam",
        )  # fmt: skip
        reports.append(run(parse([recipe])))
    scores = [report["results"]["final"]["ap"] for report in reports]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_of_one_image_on_features_of_one_cell(batch_size, tmp_path):
    """15 training images leave one behind two batches of 7; stage 2 of an 8 x 8 image has one cell."""
    for label, count in (("good", 20), ("scratch", 10)):
        for index in range(count):
            save_noise(tmp_path / "images" / label / f"{index}.png", index, count)
    recipe = write_recipe(
        tmp_path, data_dir=str(tmp_path / "images"), output_dir=str(tmp_path / "out"), image_height=8, image_width=8
    )
    with pytest.raises(InputError, match=r"a batch holds a single image, .* choose another batch size"):
        run(parse([recipe, "--per_device_train_batch_size", str(batch_size)]))
    assert not (tmp_path / "out").exists()
