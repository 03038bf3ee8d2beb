"""The words of `dinov2-zoo`: recipes and commands are found, others are met with the nearest."""

import subprocess
import sys

import pytest

from dinov2_zoo import __version__
from dinov2_zoo.cli import obey, recipe_files
from dinov2_zoo.commands import COMMANDS
from dinov2_zoo.errors import ConfigError


def zoo(*words):
    program = "import sys; from dinov2_zoo.cli import main; sys.argv[0] = 'dinov2-zoo'; main()"
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("evalute", "evaluate"), ("distil", "distill"), ("fit_head", "fit-heads"), ("pretrian", "pretrain")],
)
def test_an_unknown_word_names_the_nearest(word, meant):
    with pytest.raises(ConfigError, match=f"no command `{word}`: did you mean `{meant}`"):
        obey([word])


def test_a_word_like_no_other_is_told_all():
    with pytest.raises(ConfigError, match=r"use one of adapt-resolution, distill, .*, publish"):
        obey(["xyzzy"])


def test_recipes_are_words():
    assert {"adapt-resolution", "distill", "evaluate", "fit-heads", "pretrain"} <= recipe_files().keys()
    assert not recipe_files().keys() & COMMANDS.keys()


def test_version_and_overview(capsys):
    obey(["--version"])
    assert capsys.readouterr().out == f"dinov2-zoo {__version__}\n"
    obey([])
    text = capsys.readouterr().out
    assert all(word in text for word in [*recipe_files(), *COMMANDS])


def test_a_recipe_is_run_as_the_program_with_what_follows_its_word():
    done = zoo("fit-heads", "photos", "--help", "optim.steps")
    assert done.returncode == 0 and done.stdout.startswith("usage: dinov2-zoo fit-heads [DATA]")
    done = zoo("pretrain", "photos", "--lr", "1")
    assert (done.returncode, done.stderr) == (2, "error: Unknown option `lr`: did you mean `optim.base_lr`?\n")
    done = zoo("adapt-resolution", "nowhere")
    assert done.returncode == 2 and "nowhere holds no run" in done.stderr
