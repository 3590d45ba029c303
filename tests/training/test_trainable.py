"""Trainer settings that cannot work are refused before the folder is claimed; those that can, train."""

import re
from types import SimpleNamespace

import pytest
from jobs import write_recipe
from tiny import TINY_BACKBONES, make_images, save_noise, tiny_model
from torch.optim import SGD
from transformers import SchedulerType, get_scheduler

from kgl.cli.train import parse
from kgl.errors import InputError
from kgl.train import run
from kgl.training.settings import _batch_sizes, check_settings
from kgl.training.trainer_checks import check_trainer


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
        (["--fp16", "true"], "it needs a GPU; on a CPU use --bf16 true --use_cpu true"),
        (["--dataloader_drop_last", "true", "--per_device_train_batch_size", "64"], "less than one batch of 64"),
        (["--lr_scheduler_type", "polynomial", "--max_steps", "1"], "warm-up takes all of its 1 step; lower --warmup"),
        (
            ["--lr_scheduler_type", "polynomial", "--learning_rate", "1e-9"],
            "polynomial: lr_end .* must be smaller",
        ),
        (["--lr_scheduler_type", "reduce_lr_on_plateau"], "it follows an evaluation loss, and validation images are"),
        (["--torch_compile_backend", "fastest"], "--torch_compile_backend fastest: 'FASTEST' is not a valid"),
        (["--torch_compile_backend", "tvm"], "--torch_compile_backend tvm: .*tvm"),
        (["--torch_compile_mode", "fastest"], "inductor --torch_compile_mode fastest: Unrecognized mode=fastest"),
        (["--adam_beta1", "1"], "--optim adamw_torch_fused: Invalid beta parameter"),
        (["--dataloader_persistent_workers", "true"], "The data loader cannot be made: persistent_workers option"),
        (["--report_to", "nobody"], "--report_to nobody: nobody is not supported"),
        (["--weight_decay", "-1"], r"--weight_decay -1\.0: it must be at least 0"),
        (["--max_grad_norm", "-1"], r"--max_grad_norm -1\.0: it must be at least 0"),
        (["--label_smoothing_factor", "2"], r"--label_smoothing_factor 2\.0: it must lie in 0\.\.1"),
        (["--dataloader_num_workers", "1", "--dataloader_prefetch_factor", "0"], "_prefetch_factor 0: it must be at"),
        (["--train_sampling_strategy", "group_by_length"], "have no length to group by; choose random or sequential"),
        (["--accelerator_config", '{"gradient_accumulation_kwargs": {"num_steps": 3}}'], "by --gradient_accumulation"),
        (["--weight_decay", "nan"], r"--weight_decay nan: give a finite number"),
        (["--max_grad_norm", "nan"], r"--max_grad_norm nan: give a finite number"),
        (["--learning_rate", "inf"], r"--learning_rate inf: give a finite number"),
        (["--ddp_backend", "gloo"], "--ddp_backend gloo: it goes with accelerate launch or torchrun"),
        (["--deepspeed", "ds.json"], "--deepspeed: the package deepspeed is not installed"),
        (["--optim_args", "a"], "--optim_args a: give pairs such as"),
        (["--optim_args", "a=1"], "--optim_args a=1: --optim adamw_torch_fused takes none of them"),
    ],
)
def test_unusable_trainer_settings(arguments, message, tmp_path):
    recipe = write_recipe(tmp_path, data_dir=str(make_images(tmp_path / "images")))
    with pytest.raises(InputError, match=message):
        run(parse([recipe, "--output_dir", str(tmp_path / "out"), *arguments]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    ["lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "accelerator_config", "fsdp_config"],
)
@pytest.mark.parametrize("text", ["nowhere.json", '{"a": ', "1", "[1]"])
def test_text_that_is_no_json_object(name, text, tmp_path):
    recipe = write_recipe(tmp_path, data_dir="images")
    with pytest.raises(InputError, match=rf"^--{name} {re.escape(text)}: give a JSON object"):
        parse([recipe, f"--{name}", text])


def test_unknown_names_in_json_objects(tmp_path):
    recipe = write_recipe(tmp_path, data_dir=str(make_images(tmp_path / "images")), output_dir=str(tmp_path / "out"))
    for name, message in (("lr_scheduler_kwargs", "--lr_scheduler_type cosine:"), ("accelerator_config", "")):
        with pytest.raises(InputError, match=f"{message}.* unexpected keyword argument 'a'"):
            run(parse([recipe, f"--{name}", '{"a": 1}']))
    with pytest.raises(InputError, match=r"--parallelism_config"):
        check_settings(parse([recipe, "--parallelism_config", "abc"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("schedule", [one.value for one in SchedulerType])
@pytest.mark.parametrize("steps", [1, 2])
def test_schedule_that_is_not_refused_can_be_computed(schedule, steps, tmp_path):
    recipe = write_recipe(tmp_path, data_dir="images")
    model = tiny_model()
    try:
        args = parse([recipe, "--lr_scheduler_type", schedule, "--max_steps", str(steps)]).training
        check_trainer(args, model, 12)
    except InputError as refused:
        assert f"--lr_scheduler_type {schedule}" in str(refused)
        return
    optimizer = SGD(model.parameters(), lr=args.learning_rate)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()


def test_check_of_the_trainer_changes_nothing(tmp_path):
    args = parse([write_recipe(tmp_path, data_dir="images", output_dir=str(tmp_path / "out"))]).training
    settings, model = args.to_dict(), tiny_model()
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    check_trainer(args, model, 12)
    assert args.to_dict() == settings and not (tmp_path / "out").exists()
    assert all(weights.equal(before[name]) for name, weights in model.state_dict().items())


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


@pytest.mark.parametrize(
    ("count", "batch_size", "config", "drop_last", "sizes"),
    [
        (22, 7, {}, False, {7}),  # processes fill their last batches
        (22, 7, {"even_batches": False}, False, {7, 1}),
        (22, 2, {"split_batches": True}, False, {1}),
        (22, 8, {"split_batches": True, "even_batches": False}, False, {4, 2}),
        (1_000_000, 7, {"even_batches": False}, False, {7, 1}),
        (22, 7, {"even_batches": False}, True, {7}),
        (13, 7, {}, True, set()),
    ],
)
def test_sizes_of_batches_in_two_processes(count, batch_size, config, drop_last, sizes):
    settings = SimpleNamespace(split_batches=False, even_batches=True)
    vars(settings).update(config)
    args = SimpleNamespace(
        per_device_train_batch_size=batch_size, world_size=2, accelerator_config=settings,
        dataloader_drop_last=drop_last,
    )  # fmt: skip
    assert _batch_sizes(args, count) == sizes
