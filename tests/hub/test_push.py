"""Runs pushed over HTTP to a local Hub, and loaded from it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, hub_server
from huggingface_hub import HfApi, ModelCard, constants
from PIL import Image
from tiny import make_images
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import kgl.cli.push
import kgl.hub.push
import kgl.train
from kgl.cli.train import parse
from kgl.errors import InputError
from kgl.exporters.onnx import metadata
from kgl.hub.push import files_to_push, push
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.arguments import LicenseArguments


PUSHED = {
    ".gitattributes", "README.md", "config.json", "configuration_kgl.py", "grid_test.png", "grid_train.png",
    "handler.py", "heads_kgl.py", "metrics.json", "model.safetensors", "modeling_kgl.py", "pipeline_kgl.py",
    "preprocessor_config.json", "report.html",
}  # fmt: skip
FLAGS = [
    "--defect_free_label", "good", "--image_height", "32", "--image_width", "48", "--num_folds", "2",
    "--out_features", "stage2", "--validation_share", "0.3", "--num_train_epochs", "1", "--save_steps", "1",
    "--per_device_train_batch_size", "4", "--freeze_stages", "0", "--use_cpu", "true", "--backbone_config",
    '{"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}',
]  # fmt: skip
LOAD = """
import sys
sys.modules["kgl"] = None  # importing it fails
import torch
from transformers import AutoModelForImageClassification
image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
outputs = []
for name in ("user/scratches", sys.argv[1]):
    model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True).eval()
    assert model.config.operating_point["threshold"] > 0
    outputs.append(model(image))
assert (outputs[0].logits == outputs[1].logits).all() and (outputs[0].saliency == outputs[1].saliency).all()
exec(sys.argv[2])  # the lines of the card
print(classifier("part.png"))
"""


def flags(data_dir, output_dir, *more):
    return [*FLAGS, "--data_dir", str(data_dir), "--output_dir", str(output_dir), *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, checkpoints and all."""
    folder = tmp_path_factory.mktemp("hub")
    make_images(folder / "secret place" / "images")
    arguments = flags(folder / "secret place" / "images", folder / "run", "--data_license", "cc-by-4.0")
    kgl.train.run(parse(arguments))
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process uses."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def environment(hub, tmp_path):
    """Return the environment of a process that uses this Hub."""
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    return {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | own


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_class_called_like_a_path_keeps_its_name_in_a_whole_run(tmp_path):
    images = make_images(tmp_path / "images")
    rows = [f"{path.relative_to(images)},{'/ok' if path.parent.name == 'good' else '../bad'}"
            for path in images.rglob("*.png")]  # fmt: skip
    (images / "t.csv").write_text("\n".join(["image,label", *rows]))
    table = ["--data_file", str(images / "t.csv"), "--defect_free_label", "/ok"]
    report = kgl.train.run(parse([*FLAGS, *table, "--output_dir", str(tmp_path / "run")]))
    assert report["settings"]["data"]["defect_free_label"] == "/ok"
    assert report["settings"]["data"]["data_file"] == "t.csv"
    pushed = files_to_push(tmp_path / "run")  # /ok is no path of this machine
    assert json.loads(pushed["config.json"].read_text())["defect_free_label"] == "/ok"
    assert "/ok" in pushed["report.html"].read_text()
    assert "as `../bad` or `/ok`; `/ok` means no defect" in (tmp_path / "run" / "final" / "README.md").read_text()
    table = (tmp_path / "run" / "predictions.csv").read_text()
    assert "final_probability_/ok" in table and ",../bad," in table
    model = KGLForImageClassification.from_pretrained(tmp_path / "run" / "final")
    entries = metadata(model, ViTImageProcessorPil.from_pretrained(tmp_path / "run" / "final"))
    assert (json.loads(entries["labels"]), entries["defect_free_label"]) == (["../bad", "/ok"], "/ok")


def test_push_by_command_and_load_by_id_without_kgl(run, hub, tmp_path, auto_image_processor):
    env = environment(hub, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "kgl.cli.main", "push", run, "user/scratches", "--model_license", "mit"],
        capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    repo = hub.repos["user/scratches"]
    assert repo.private and len(repo.commits) == 2  # the one of its creation, and ours
    assert f"commit/{repo.sha}" in done.stdout and set(repo.files) == PUSHED
    assert repo.files["README.md"] == (run / "final" / "README.md").read_bytes()
    data = ModelCard(repo.files["README.md"].decode()).data
    assert data.license == "mit" and {one.metric_name for one in data.eval_results} >= {"AP", "Accuracy"}

    (lines,) = [part for part in repo.files["README.md"].decode().split("```") if part.startswith("python\n")]
    Image.new("L", (48, 40), 100).save(tmp_path / "part.png")
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, run / "final", lines.removeprefix("python\n")],
        capture_output=True, text=True, cwd=tmp_path, env=env | {"HF_HOME": str(tmp_path / "fresh")},
    )  # fmt: skip
    assert loaded.returncode == 0 and "'scratch'" in loaded.stdout, loaded.stderr
    assert any(one.startswith("GET /blobs/") for one in hub.requests)  # the weights were downloaded


def test_only_allowed_files_are_pushed(run, hub):
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin", "scheduler.pkl", "notes.txt", ".env"):
        (run / name).write_bytes(b"\x80\x04.")
        (run / "final" / name).write_bytes(b"\x80\x04.")
    (run / "final" / "checkpoint-1").mkdir(exist_ok=True)
    (run / "final" / "checkpoint-1" / "optimizer.pt").write_bytes(b"\x80\x04.")
    push(run, "user/scratches")
    files = hub.repos["user/scratches"].files
    assert set(files) == PUSHED
    assert {Path(name).suffix for name in files} == {"", ".html", ".json", ".md", ".png", ".py", ".safetensors"}
    assert not any(body.startswith((b"\x80", b"PK")) for body in files.values())  # pickles, torch's archives


def test_no_path_of_this_machine_is_pushed(run, hub, finished):
    assert "secret place" in (run / "run.json").read_text()
    push(run, "user/scratches")
    for name, body in hub.repos["user/scratches"].files.items():
        for path in (b"secret place", str(finished.parent).encode(), str(run.parent).encode()):
            assert path not in body, name
    assert json.loads(hub.repos["user/scratches"].files["metrics.json"])["settings"]["data"]["data_dir"] == "images"

    with (run / "report.html").open("a") as page:
        page.write(f"<td>{finished.parent / 'secret place' / 'images'}</td>")
    with pytest.raises(InputError, match=r"report\.html contains a path of this machine"):
        push(run, "user/scratches")


@pytest.mark.parametrize(
    ("request_", "how", "message"),
    [
        ("GET /api/whoami-v2", 401, r"does not accept your token; run hf auth login.*\(HTTP 401\)"),
        ("POST /api/repos/create", 403, r"your token does not allow this.*\(HTTP 403\)"),
        ("POST .*/commit/main", 409, r"another push to it is running.*\(HTTP 409\)"),
        ("POST .*/commit/main", 412, r"changed in the meantime; push again.*\(HTTP 412\)"),
        ("POST .*/commit/main", 413, r"exceeds your storage.*\(HTTP 413\)"),
        ("PUT /blobs/.*", 413, r"exceeds your storage.*\(HTTP 413\)"),
        ("POST .*/commit/main", 500, r"internal error \(HTTP 500\); try again later"),
        ("POST .*/commit/main", 418, r"the Hub refused \(HTTP 418\)"),
        ("GET /api/models/.*", "hang", r"does not answer in time \(ReadTimeout.*check the network"),
    ],
)
def test_failed_push_is_one_sentence_and_can_be_repeated(run, hub, monkeypatch, request_, how, message):
    before = content(run)
    hub.fail = {request_: how}
    monkeypatch.setattr(kgl.hub.push, "_TIMEOUT", 1.0)
    with pytest.raises(InputError, match=message) as refused:
        push(run, "user/scratches")
    assert str(refused.value).endswith(f"push it later with: kgl push {run} user/scratches")
    assert "\n" not in str(refused.value)
    assert content(run) == before
    assert all(len(repo.commits) == 1 for repo in hub.repos.values())  # nothing is half-pushed
    hub.fail = {}
    push(run, "user/scratches")
    assert set(hub.repos["user/scratches"].files) == PUSHED


def test_card_that_cannot_be_downloaded_is_not_overwritten(run, hub):
    push(run, "user/scratches")
    hub.edit("user/scratches", "README.md", "mine")
    hub.fail = {"(GET|HEAD) .*/README.md": 403}
    with pytest.raises(InputError, match=r"does not allow this.*\(HTTP 403\)"):
        push(run, "user/scratches")
    assert hub.repos["user/scratches"].files["README.md"] == b"mine"


def test_no_network_no_token_and_offline(run, hub, monkeypatch):
    before = content(run)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(InputError, match=r"127\.0\.0\.1:9 cannot be reached.*ConnectError.*check the network"):
            push(run, "user/scratches")
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        with pytest.raises(InputError, match="you are not logged in; run hf auth login"):
            push(run, "user/scratches")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="HF_HUB_OFFLINE forbids network access"):
            push(run, "user/scratches")
    assert content(run) == before and not hub.repos
    push(run, "user/scratches")


def test_public_only_on_request(run, hub, capsys):
    push(run, "user/open", private=False)
    assert not hub.repos["user/open"].private
    with pytest.raises(InputError, match="user/open exists and is public"):
        push(run, "user/open")
    push(run, "open", private=False)  # without an owner
    assert len(hub.repos["user/open"].commits) == 3
    push(run, "user/closed")
    push(run, "user/closed", private=False)
    assert hub.repos["user/closed"].private and "it stays private" in capsys.readouterr().out


def test_text_of_the_user_is_kept(run, hub):
    path = run / "final" / "README.md"
    path.write_text(path.read_text().replace("tags:", "thumbnail: part.png\ntags:") + "\nSeen on line 3.\n")
    push(run, "user/scratches")
    repo = hub.repos["user/scratches"]
    push(run, "user/scratches", LicenseArguments(model_license="mit", data_license="ours"))
    text = repo.files["README.md"].decode()
    assert text.endswith("<!-- kgl:end -->\n\nSeen on line 3.\n") and text == path.read_text()
    assert ModelCard(text).data.thumbnail == "part.png" and ModelCard(text).data.license == "mit"
    push(run, "user/scratches")
    assert ModelCard(repo.files["README.md"].decode()).data.license == "mit"  # stated at an earlier push
    assert "The training images: ours" in repo.files["README.md"].decode()


def test_differing_text_of_the_user_is_refused(run, hub):
    push(run, "user/scratches")
    repo, path = hub.repos["user/scratches"], run / "final" / "README.md"
    hub.edit("user/scratches", "README.md", repo.files["README.md"].decode() + "\nAsk Ada.\n")
    push(run, "user/scratches")
    assert path.read_text().endswith("\n\nAsk Ada.\n")  # the local copy had no text of the user's
    path.write_text(path.read_text().replace("Ada", "Bob"))
    with pytest.raises(InputError, match=r"final/README\.md and differently in README\.md of user/scratches"):
        push(run, "user/scratches")
    assert "Ada" in repo.files["README.md"].decode() and "Bob" in path.read_text()
    path.write_text(repo.files["README.md"].decode())
    push(run, "user/scratches")


def test_another_run_in_the_same_repository_keeps_the_users_text(run, hub, finished, tmp_path):
    push(run, "user/scratches")
    hub.edit("user/scratches", "README.md", hub.repos["user/scratches"].files["README.md"].decode() + "\nAsk Ada.\n")
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    report = json.loads((other / "metrics.json").read_text())
    report["results"]["final"]["accuracy"] = 0.4321
    (other / "metrics.json").write_text(json.dumps(report))
    push(other, "user/scratches")
    text = hub.repos["user/scratches"].files["README.md"].decode()
    assert text.endswith("\n\nAsk Ada.\n")
    assert [one.metric_value for one in ModelCard(text).data.eval_results if one.metric_name == "Accuracy"] == [0.4321]


def test_upload_folder_may_split_a_push(hub, tmp_path, monkeypatch):
    """Why `push` uses create_commit."""
    pytest.importorskip("hf_xet")
    pipeline = pytest.importorskip("huggingface_hub._upload_pipeline")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(pipeline, "REGULAR_CONTENT_BYTES_BUDGET", 10)
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text('{"some": "content"}')
    api = HfApi()
    api.create_repo("user/scratches")
    api.upload_folder(repo_id="user/scratches", folder_path=tmp_path, allow_patterns=["*.json"])
    assert len(hub.repos["user/scratches"].commits) == 3  # that of its creation, and two


def test_edit_during_the_push_is_not_lost(run, hub, monkeypatch):
    push(run, "user/scratches")
    download = kgl.hub.push._download_card

    def edited_right_after(*args):
        text = download(*args)
        hub.edit("user/scratches", "README.md", "mine")
        return text

    monkeypatch.setattr(kgl.hub.push, "_download_card", edited_right_after)
    with pytest.raises(InputError, match="in the meantime"):
        push(run, "user/scratches")
    assert hub.repos["user/scratches"].files["README.md"] == b"mine"


def test_card_without_marks_is_left_alone(run, hub, capsys):
    push(run, "user/scratches")
    mine = "---\nlicense: mit\n---\n\n# All mine\n"
    hub.edit("user/scratches", "README.md", mine)
    push(run, "user/scratches")
    assert hub.repos["user/scratches"].files["README.md"].decode() == mine
    assert "README.md is pushed as it is" in capsys.readouterr().out


def test_training_pushes_once_at_its_end(finished, hub, tmp_path):
    images = finished.parent / "secret place" / "images"
    hub_flags = ("--push_to_hub", "true", "--hub_model_id", "user/trained", "--hub_revision", "trial")
    settings = parse(flags(images, tmp_path / "run", *hub_flags))
    hub.fail = {"POST .*/commit/.*": 500}
    with pytest.raises(InputError, match=r"HTTP 500.*is complete; push it later with: kgl push"):
        kgl.train.run(settings)
    assert (tmp_path / "run" / "metrics.json").exists() and len(hub.repos["user/trained"].commits) == 1
    writes = [one for one in hub.requests if "/commit/" in one or "/create" in one]
    assert writes == ["POST /api/repos/create", "POST /api/models/user/trained/commit/trial"]  # none by the Trainer
    hub.fail, hub.requests[:] = {}, []
    kgl.train.run(settings)  # trained before, pushed now
    assert [one for one in hub.requests if "/commit/" in one] == ["POST /api/models/user/trained/commit/trial"]
    assert set(hub.repos["user/trained"].files) == PUSHED and hub.repos["user/trained"].private


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hub_model_id", "no such/name/at all"], "no valid repository name"),
        (["--hub_strategy", "checkpoint"], "--hub_strategy: checkpoints are not pushed"),
    ],
)
def test_push_settings_are_checked_before_training(arguments, message, tmp_path, image_folder):
    with pytest.raises(InputError, match=message):
        kgl.train.run(parse(flags(image_folder, tmp_path / "run", "--push_to_hub", "true", *arguments)))
    assert not (tmp_path / "run").exists()


def test_login_is_checked_before_training(hub, monkeypatch, tmp_path, image_folder):
    settings = parse(flags(image_folder, tmp_path / "run", "--push_to_hub", "true"))
    hub.fail = {"GET /api/whoami-v2": 401}
    with pytest.raises(InputError, match=r"--push_to_hub true: the Hub does not accept your token.*kgl push pushes"):
        kgl.train.run(settings)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="--push_to_hub true: you are not logged in; run hf auth login"):
        kgl.train.run(settings)
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "file" / "token"))  # a home that is none
    with pytest.raises(InputError, match=r"--push_to_hub true: .*file/token"):
        kgl.train.run(settings)
    assert not (tmp_path / "run").exists()


def test_run_writes_a_card_beside_its_model(finished):
    text = (finished / "final" / "README.md").read_text()
    assert "The training images: cc-by-4.0" in text and "![" in text
    assert (finished / "final" / "grid_test.png").read_bytes() == (finished / "grid_test.png").read_bytes()


def test_unfinished_runs_are_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no run of kgl train, run\.json is missing"):
        files_to_push(tmp_path / "empty")
    with pytest.raises(InputError, match="there is no such folder; give the --output_dir of a run"):
        files_to_push(tmp_path / "nowhere")
    with pytest.raises(InputError, match=rf"this is one classifier of a run; give the folder of the run, {run}"):
        files_to_push(run / "final")
    assert files_to_push(run).keys() == PUSHED - {".gitattributes", "README.md"}
    (run / "final" / "model.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="no complete safetensors file"):
        files_to_push(run)
    (run / "final" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"the weights \(model\.safetensors\) are missing"):
        files_to_push(run)


def test_code_of_an_earlier_version_is_in_fewer_files(run):
    modeling = run / "final" / "modeling_kgl.py"
    (run / "final" / "heads_kgl.py").unlink()
    with pytest.raises(InputError, match=r"final/heads_kgl\.py is missing"):
        files_to_push(run)
    modeling.write_text(modeling.read_text().replace("from .heads_kgl import", "from kgl.heads_kgl import"))
    assert files_to_push(run).keys() == PUSHED - {".gitattributes", "README.md", "heads_kgl.py"}


def test_command_ends_in_one_sentence(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        kgl.cli.push.main([str(tmp_path), "user/scratches"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("kgl push: error: ")
