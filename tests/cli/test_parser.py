"""Settings from positional arguments, recipes and flags."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kgl.cli.main import check_arguments
from kgl.cli.parser import run_command
from kgl.cli.train import parse
from kgl.errors import InputError, Terminated
from kgl.training.arguments import check_path_or_repo


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data_dir: images\nlearning_rate: 5e-4\nfold: 0\nout_features: [stage2, stage3]\nbf16: false\n")
    return str(path)


@pytest.mark.parametrize("form", ["positional", "--config"])
def test_flags_win_over_the_recipe(recipe, form):
    given = [recipe] if form == "positional" else ["--config", recipe]
    settings = parse([*given, "--fold", "1", "--output_dir", "runs/x"])
    assert (settings.data.fold, settings.training.learning_rate) == (1, 5e-4)
    assert settings.model.out_features == ["stage2", "stage3"] and settings.training.bf16 is False
    assert settings.data.data_dir == "images"


@pytest.mark.parametrize("source", ["dataset: surfaces\nnum_folds: 2\n", "data_file: a.csv\nnum_folds: 2\n"])
def test_images_replace_the_source_of_the_recipe(tmp_path, source):
    (tmp_path / "recipe.yaml").write_text(source)
    data = parse(["other", "--config", str(tmp_path / "recipe.yaml")]).data
    assert (data.data_dir, data.data_file, data.dataset, data.num_folds) == ("other", None, None, 2)


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("train", ["data_dir", "output_dir", "backbone"]),
        ("train", ["data_file"]),
        ("train", ["hub_dataset"]),
        ("data", ["data_dir", "output"]),
        ("predict", ["paths", "model", "output"]),
        ("saliency", ["data_dir", "model", "output"]),
        ("prior", ["data_dir", "model", "output_dir"]),
        ("export", ["model", "output", "int8"]),
        ("push", ["run"]),
        ("curve", ["run", "backbone", "output"]),
        ("audit", ["data_dir", "backbone", "output"]),
        ("next", ["run", "unlabelled", "output"]),
    ],
)
def test_home_is_expanded_in_every_path(command, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    endings = {"saliency": ".png", "data": ".json", "export": ".onnx"}
    paths = {name: f"{name}{endings[command] if name == 'output' and command in endings else ''}" for name in settings}
    required = ["--repo=a/b"] if command == "push" else []
    parsed = check_arguments([command, *required, *(f"--{name}=~/{path}" for name, path in paths.items())])
    groups = parsed if isinstance(parsed, tuple) else (parsed,)
    found = {name: value for group in groups for name, value in vars(group).items() if name in settings}
    expected = {name: str(tmp_path / path) for name, path in paths.items()}
    assert found == expected | ({"paths": [expected["paths"]]} if command == "predict" else {})


def test_home_is_expanded_in_the_recipe_path(recipe, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(recipe).parent))
    assert parse(["--config=~/recipe.yaml"]).data.data_dir == "images"


def test_images_given_twice_are_refused():
    with pytest.raises(InputError, match="images: it is given a second time by --data_dir"):
        parse(["images", "--data_dir", "other"])


def test_recipe_may_follow_an_equals_sign(recipe):
    assert parse([f"--config={recipe}"]).data.data_dir == "images"


def test_switch_without_a_value_leaves_the_images(recipe):
    settings = parse(["--no_augment", "parts"])
    assert (settings.model.augment, settings.data.data_dir) == (False, "parts")


@pytest.mark.parametrize("arguments", [["parts", "--seed", "3"], ["--seed", "3", "parts"]])
def test_images_may_come_first_or_last(arguments):
    settings = parse(arguments)
    assert (settings.data.data_dir, settings.training.seed) == ("parts", 3)


def test_table_is_known_by_its_ending():
    for table in ("labels.CSV", "labels.xls", "labels.ods"):
        assert parse([table]).data.data_file == table
    assert parse(["labels"]).data.data_dir == "labels"


def test_value_equal_to_the_positional_argument_stays_with_its_flag():
    for arguments in (["--backbone", "x", "x"], ["x", "--backbone", "x"]):
        settings = parse(arguments)
        assert (settings.model.backbone, settings.data.data_dir) == ("x", "x")


def test_images_may_follow_a_switch():
    settings = parse(["--balanced_sampling", "parts"])
    assert (settings.training.balanced_sampling, settings.data.data_dir) == (True, "parts")
    settings = parse(["--balanced_sampling", "false", "parts", "--kg_lambda", "-0"])
    assert (settings.training.balanced_sampling, settings.data.data_dir) == (False, "parts")


@pytest.mark.parametrize("arguments", [["parts", "RECIPE"], ["RECIPE", "parts"], ["parts", "--config", "RECIPE"]])
def test_images_and_a_recipe_go_together(arguments):
    """The paper's setting is one recipe, on the reader's own images."""
    recipe = str(Path(__file__).resolve().parents[2] / "recipes" / "paper.yaml")
    settings = parse([recipe if one == "RECIPE" else one for one in arguments])
    assert settings.data.data_dir == "parts"
    assert (settings.model.fine_tune, settings.model.head) == (True, "avg_max")
    assert (settings.prior.prior_source, settings.prior.prior_method) == ("saliency", "layercam")
    training = settings.training
    assert (training.kg_form, training.kg_lambda, training.kg_positive_weight) == ("convex", 1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1, 2", "the recipe is not valid YAML"),
        ("- a\n- b", "a recipe consists of `setting: value` lines"),
        ("", "a recipe consists of `setting: value` lines"),
        ("learning_rat: 1", r"unknown setting --learning_rat 1; did you mean --learning_rate\?"),
        ("bf16: maybe", "^--bf16 maybe: give true or false"),
        ("seed: 3", "^IMAGES must be given"),
        ("dataset: foo", "argument --dataset: invalid choice: 'foo'"),
        ("num_folds: 2.5", r"^--num_folds 2\.5: give a whole number\.$"),
        ("learning_rate: fast", r"^--learning_rate fast: give a number, such as 0\.4\.$"),
    ],
)
def test_bad_recipe_is_one_sentence(content, message, tmp_path):
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        parse([str(tmp_path / "r.yaml")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml: the recipe cannot be read"),
        (["--config"], "--config: name a recipe"),
        (["--config", "--use_cpu"], "--config: name a recipe"),
        (["x", "--max_steps", "0"], "--max_steps 0: it must be at least 1"),
        (["x", "--label_column", "class"], "--label_column class has no effect beside --data_dir x"),
        (["x", "--num_surfaces", "5"], "--num_surfaces 5 has no effect"),
        (["a.yaml", "--config", "b.yaml"], "Give one recipe, not b.yaml and a.yaml"),
        (["one", "two"], "Give one folder or table of images, not one and two"),
        (["x", "--no_such_flag", "1"], "unknown setting --no_such_flag 1; see --help"),
        (["x", "--batch_size", "4"], r"unknown setting --batch_size 4; did you mean --per_device_train_batch_size\?"),
        (["x", "--epochs=3"], r"unknown setting --epochs=3; did you mean --num_train_epochs\?"),
        (["x", "--lr", "1"], r"unknown setting --lr 1; did you mean --learning_rate\?"),
        (["x", "--imgsz", "224"], r"did you mean --image_height and --image_width\?"),
        (["x", "--bf16", "maybe"], "^--bf16 maybe: give true or false"),
        (["--data_dir", "x", "--bf16", "maybe"], "^--bf16 maybe: give true or false"),
        (["x", "--balanced_sampling=2"], "^--balanced_sampling 2: give true or false"),
        ([], r"^IMAGES must be given, as in `kgl train images .*`; see --help\.$"),
        (["--seed", "1"], "^IMAGES must be given"),
        (["x", "--learning_rate", "1e-3,5"], "^--learning_rate 1e-3,5: give a number"),
        (["--data_file", "x.csv", "--grade_thresholds", "0,4"], r"with a point, --grade_thresholds 0\.4\.$"),
        (["x", "--head", "most"], "argument --head: invalid choice: 'most'"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        parse(arguments)


def test_word_after_a_switch_does_not_replace_the_images_of_the_recipe(recipe):
    with pytest.raises(InputError, match="--bf16 maybe: give true or false"):
        parse([recipe, "--bf16", "maybe"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict"], "PATHS, --model and --output must be given, as in `kgl predict line/monday --model"),
        (["predict", "a", "--model", "m"], "^--output must be given"),
        (["predict", "a", "--modle", "m"], r"unknown setting --modle m; did you mean --model\?"),
        (["predict", "a", "--model", "m", "--output_dir", "o"], r"--output_dir o; did you mean --output\?"),
        (["push"], "^RUN and OWNER/NAME must be given, as in `kgl push runs/images owner/scratches"),
        (["push", "runs/images"], "^OWNER/NAME must be given"),
        (["push", "runs/images", "a/b", "--public", "maybe"], "^--public maybe: give true or false"),
        (["export"], "^CLASSIFIER must be given"),
        (["data"], "^IMAGES must be given"),
        (["prior", "a"], "^--model and --output_dir must be given"),
        (["saliency"], "^IMAGES, --model and --output must be given"),
    ],
)
def test_missing_and_unknown_settings_of_every_command(arguments, message):
    with pytest.raises(InputError, match=message):
        check_arguments(arguments)


def test_input_error_is_a_sentence_and_exit_code_2(capsys):
    def job():
        raise InputError("the folder is empty.")

    with pytest.raises(SystemExit) as stopped:
        run_command("kgl train", job)
    assert stopped.value.code == 2 and capsys.readouterr().err == "kgl train: error: the folder is empty.\n"


def test_lines_are_written_at_once_to_files_and_pipes(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), write_through=False))
    run_command("kgl train", lambda: print("Phase 1"))
    assert sys.stdout.buffer.getvalue() == b"Phase 1\n"


def test_interrupt_is_a_sentence_and_exit_code_130(capsys):
    def job():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        run_command("kgl train", job)
    assert stopped.value.code == 130 and "Run the same command again to resume" in capsys.readouterr().err


def test_sigterm_is_a_sentence_and_exit_code_143(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def job():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it goes on")

    with pytest.raises(SystemExit) as stopped:
        run_command("kgl train", job)
    printed = capsys.readouterr().err
    assert stopped.value.code == 143 and printed == "\nkgl train: stopped. Run the same command again to resume.\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_of_one_of_several_processes_is_left_alone(monkeypatch):
    """It may wait for another process, and would not get to a handler."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    run_command("kgl train", lambda: before == signal.getsignal(signal.SIGTERM) or pytest.fail("it is handled"))


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (InputError("the folder is empty."), 2, "kgl train: error: the folder is empty.\n"),
        (KeyboardInterrupt(), 130, "\nkgl train: stopped. Run the same command again to resume.\n"),
        (Terminated(), 143, "\nkgl train: stopped. Run the same command again to resume.\n"),
        (KeyError("label"), 1, "KeyError: 'label'\n"),
        (RuntimeError("gloo/transport: Connection closed by peer"), 1, "Another process has ended or"),
    ],
)  # fmt: skip
def test_one_of_several_processes_ends_at_once(error, code, printed, monkeypatch, capsys):
    def end(code):
        raise SystemExit(code)

    def job():
        raise error

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("kgl.data.processes.end_process", end)
    monkeypatch.setattr("kgl.data.processes._exit_now", end)
    with pytest.raises(SystemExit) as stopped:
        run_command("kgl train", job)
    assert stopped.value.code == code and printed in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "is_path"),
    [
        ("/nowhere/final", True), ("./final", True), ("~/final", True), ("runs/images/final", True),
        ("here/final", True), ("here", False), ("owner/name", False), ("resnet-18", False), ("timm/resnet18", False),
        ("here/there/final", True),
    ],
)  # fmt: skip
def test_missing_path_of_a_model_is_known_without_the_hub(model, is_path, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    if not is_path:
        return check_path_or_repo("--model", model)
    with pytest.raises(InputError, match=f"^--model {model}: there is no such folder.$"):
        check_path_or_repo("--model", model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "images", "--pror_method", "3"], "unknown setting --pror_method 3; did you mean --prior_method?"),
        (["train", "images", "--backbone", "runs/all/backbone"], "--backbone runs/all/backbone: there is no such"),
        (["predict", "nowhere", "--model", "owner/name", "--output", "out"], "nowhere: there is no such file"),
        (["predict", ".", "--model", "/nowhere", "--output", "out"], "--model /nowhere: there is no such folder"),
        (["prior", "images", "--model", "/nowhere", "--output_dir", "out"], "--model /nowhere: there is no such"),
        (["saliency", "images", "--model", "/nowhere", "--output", "a.png"], "--model /nowhere: there is no such"),
    ],
)
def test_refused_before_the_imports_of_the_job(arguments, message, tmp_path):
    """They take several seconds."""
    code = f"""
import sys
sys.modules["kgl.modeling_kgl"] = None  # importing it fails
from kgl.cli.main import main
main({arguments})
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_text_of_a_recipe_stays_as_it_is_written(tmp_path):
    """YAML alone would make 0, false, 7, 750 and 1000 of these class names."""
    recipe = tmp_path / "recipe.yaml"
    for name in ("00", "no", "007", "12:30", "1_000", "'01'"):
        recipe.write_text(f"data_dir: images\ndefect_free_label: {name}\ngroup_column: null\nnum_folds: 4\n")
        data = parse([str(recipe)]).data
        assert data.defect_free_label == name.strip("'") and data.group_column is None and data.num_folds == 4
    recipe.write_text("data_dir: images\nbackbone_config: {model_type: resnet, depths: [1, 2]}\nfine_tune: yes\n")
    model = parse([str(recipe)]).model
    assert model.fine_tune is True and "[1, 2]" in str(model.backbone_config)
