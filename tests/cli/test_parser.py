"""Settings from positional arguments, recipes and flags."""

from pathlib import Path

import pytest

from kgl.cli.parser import run_command
from kgl.cli.train import parse
from kgl.errors import InputError


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
    assert parse(["labels.CSV"]).data.data_file == "labels.CSV"
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
    assert (training.kg_schedule, training.kg_objective) == ("linear", ["otsu_bce"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1, 2", "the recipe is not valid YAML"),
        ("- a\n- b", "a recipe consists of `setting: value` lines"),
        ("", "a recipe consists of `setting: value` lines"),
        ("learning_rat: 1", r"unknown setting --learning_rat 1; did you mean --learning_rate\?"),
        ("dataset: foo", "argument --dataset: invalid choice: 'foo'"),
        ("num_folds: 2.5", "argument --num_folds.*: invalid int value: '2.5'"),
        ("learning_rate: fast", "argument --learning_rate.*: invalid float value: 'fast'"),
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
        (["x", "--head", "most"], "argument --head: invalid choice: 'most'"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        parse(arguments)


def test_input_error_is_a_sentence_and_exit_code_2(capsys):
    def job():
        raise InputError("the folder is empty.")

    with pytest.raises(SystemExit) as stopped:
        run_command("kgl train", job)
    assert stopped.value.code == 2 and capsys.readouterr().err == "kgl train: error: the folder is empty.\n"


def test_interrupt_is_a_sentence_and_exit_code_130(capsys):
    def job():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        run_command("kgl train", job)
    assert stopped.value.code == 130 and "Run the same command again to resume" in capsys.readouterr().err
