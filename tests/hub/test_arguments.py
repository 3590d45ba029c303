"""Arguments of the push."""

import subprocess
import sys

import pytest

from kgl.errors import InputError
from kgl.hub.arguments import PushArguments


@pytest.mark.parametrize("repo", ["scratches", "user/scratches"])
def test_repository_names(repo):
    assert PushArguments("runs/mine", repo).repo == repo


@pytest.mark.parametrize("repo", ["no such/name/at all", "user/", "-scratches"])
def test_invalid_repository_names_are_refused(repo):
    with pytest.raises(InputError, match=f"{repo}: this is no valid repository name"):
        PushArguments("runs/mine", repo)


def test_importing_the_arguments_is_fast():
    code = "import sys, kgl.hub.arguments; print({'torch', 'transformers', 'huggingface_hub'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
