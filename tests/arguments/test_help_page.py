"""Help shows the values in force: in short, of one group, or all. It and mistakes are answered without torch."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from dinov2_zoo.arguments import parse
from dinov2_zoo.arguments.help_page import EVERYDAY, kind_of
from dinov2_zoo.config import DistillConfig
from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.errors import ConfigError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SCRIPTS = sorted(path.stem for path in RECIPES.glob("[!_]*.py"))


@pytest.fixture
def page(capsys, tmp_path):
    """What is printed for a command line, in one line; the preset for own data has 77 steps."""
    own = tmp_path / "own.yaml"
    own.write_text("optim: {steps: 77, warmup_steps: 7}\n")

    def show(*argv, kind=DistillConfig, **more):
        presets = {"default_config": RECIPES / "configs/demo.yaml", "own_data_config": own}
        with pytest.raises(SystemExit) as stop:
            parse(kind, argv, script=RECIPES / "distill.py", **(more or presets | {"position": "data"}))
        assert stop.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    return show


def test_the_short_page_has_the_abstract_everyday_options_and_the_groups(page):
    text = page("--help")
    assert "Distil a frozen teacher into a small student. Paper" in text
    for name in ("data", "student", "teacher", "name", "resume", "config", *EVERYDAY):
        assert f"--{name} " in text
    for group in ("crops Augmentation", "optim Optimizer and schedules", "log Logging"):
        assert group in text
    assert "--optim.betas" not in text and "--crops.flip" not in text


def test_values_are_those_of_the_preset_that_would_be_read(page, tmp_path):
    assert "--optim.steps int|auto Optimizer steps of the run (paper: 625,000). (default: 90)" in page("--help")
    assert "Optimizer steps of the run (paper: 625,000). (default: 77)" in page("photos", "--help")
    assert "a day on GPUs (chosen here). (default: 77)" in page("--data=photos", "-h", "optim")
    other = tmp_path / "other.yaml"
    other.write_text("optim: {steps: 55, warmup_steps: 5}\n")
    assert "a day on GPUs (chosen here). (default: 55)" in page(
        "photos", "--config", str(other), "--help", "optim.steps"
    )


def test_a_group_has_every_option_of_its_own_and_nothing_else(page):
    text = page("--help", "objective")
    assert "--objective.kind features|prototypes" in text and "--objective.features.class_weight float" in text
    assert "--optim" not in text and "Paper" not in text
    text = page("--help", "optim")
    for field in dataclasses.fields(DistillConfig().optim):
        assert f"--optim.{field.name} " in text


def test_an_unknown_group_names_the_nearest():
    with pytest.raises(ConfigError, match="no option or group `optin`: did you mean `optim`"):
        parse(DistillConfig, ["--help", "optin"])


def test_help_all_explains_every_knob(page):
    text = page("--help", "all", default_config=None)
    for group in dataclasses.fields(DistillConfig):
        value = getattr(DistillConfig(), group.name)
        names = [group.name]
        if dataclasses.is_dataclass(value):
            names = [f"{group.name}.{f.name}" for f in dataclasses.fields(value)]
        for name in names:
            assert f"--{name}" in text
    assert "official: 3" in text and "default: 2048" in text


def test_help_needs_nothing_that_a_command_does(page):
    text = page("--help", kind=EvaluateConfig, resumes=False)
    assert "--model str" in text and "--model str What to measure" in text and "--resume" not in text


def test_types_are_written_as_their_values_are():
    assert kind_of(int | Literal["auto"]) == "int|auto"
    assert kind_of(tuple[float, float]) == "[float, float]"
    assert kind_of(tuple[str, ...] | None) == "[str, ...]|null"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--no-such-option", 2)])
def test_a_recipe_answers_without_torch(script, argument, code):
    program = (
        "import runpy, sys, atexit; sys.argv = sys.argv[1:]; "
        "atexit.register(lambda: print('heavy:', {'torch', 'timm', 'accelerate', 'datasets'} & set(sys.modules))); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", program, str(RECIPES / f"{script}.py"), argument]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("heavy: set()\n")
    assert ("usage: dinov2-zoo" in done.stdout) if code == 0 else ("Unknown option `no-such-option`" in done.stderr)
