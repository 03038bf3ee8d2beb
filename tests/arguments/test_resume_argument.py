"""`--resume`: which run is meant, with which settings, and never another."""

import dataclasses
import json

import pytest

from dinov2_zoo.arguments import parse
from dinov2_zoo.config import DistillConfig, OptimConfig, PretrainConfig, to_dict
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.training.run_folder import check_run_folder, claim_run_folder

SETTINGS = DistillConfig(
    name="own", runs="runs", data="photos", optim=OptimConfig(steps=9, warmup_steps=3), student="vitti14"
)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A working folder with runs of all three recipes, and a preset of another run."""
    monkeypatch.chdir(tmp_path)
    others = {"teacher": PretrainConfig(name="teacher"), "heads": PretrainConfig(init="x", freeze_backbone=True)}
    for name, config in {"own": SETTINGS, **others}.items():
        claim_run_folder(tmp_path / "runs" / name, to_dict(config))
        (tmp_path / "runs" / name / "checkpoints").mkdir()
    (tmp_path / "demo.yaml").write_text("name: demo\noptim: {steps: 90, warmup_steps: 3}\n")
    return tmp_path / "runs"


def resume(tmp_path, *argv, kind=DistillConfig):
    return parse(kind, argv, position="data", default_config=tmp_path / "demo.yaml")


def test_a_run_is_continued_with_its_own_settings(runs, tmp_path):
    config, arguments = resume(tmp_path, "--resume", "runs/own")
    assert (config, arguments.resume) == (SETTINGS, "auto")
    check_run_folder(runs / "own", to_dict(config), resume=arguments.resume)


def test_a_checkpoint_names_its_run(runs, tmp_path):
    config, arguments = resume(tmp_path, "--resume=runs/own/checkpoints/step-6")
    assert (config, arguments.resume) == (SETTINGS, "step-6")


def test_without_a_run_the_settings_name_it(runs, tmp_path):
    for argv, checkpoint in (
        (["--resume"], "auto"),
        (["--resume", "auto"], "auto"),
        (["--resume", "step-6"], "step-6"),
    ):
        config, arguments = resume(tmp_path, *argv)
        assert (config.name, config.optim.steps, arguments.resume) == ("demo", 90, checkpoint)
    assert resume(tmp_path)[1].resume is None
    config, arguments = resume(tmp_path, "photos", "--resume")  # slurm.sbatch puts it last
    assert (config.data, arguments.resume) == ("photos", "auto")


def test_options_beside_it_override_and_are_checked_against_the_run(runs, tmp_path):
    config, _ = resume(tmp_path, "--optim.steps=12", "--resume", "runs/own", "--loader.workers", "0")
    assert config == dataclasses.replace(
        SETTINGS,
        optim=dataclasses.replace(SETTINGS.optim, steps=12),
        loader=dataclasses.replace(SETTINGS.loader, workers=0),
    )
    with pytest.raises(ConfigError, match=r"other settings \(optim\.steps: 9 -> 12\)"):
        check_run_folder(runs / "own", to_dict(config), resume="auto")


def test_a_run_that_was_moved_is_continued_where_it_is(runs, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (runs / "own").rename(tmp_path / "elsewhere/mine")
    config, arguments = resume(tmp_path, "--resume", "elsewhere/mine/")
    assert (config.runs, config.name) == ("elsewhere", "mine")
    check_run_folder(tmp_path / "elsewhere/mine", to_dict(config), resume=arguments.resume)
    monkeypatch.chdir(tmp_path / "elsewhere/mine")
    config, _ = resume(tmp_path, "--resume", ".")
    assert (config.runs, config.name) == (str(tmp_path / "elsewhere"), "mine")


@pytest.mark.parametrize("other", ["--name=b", "--runs=b"])
def test_it_cannot_be_led_to_another_run(runs, tmp_path, other):
    with pytest.raises(ConfigError, match=f"runs/own names the run already, and {other} another"):
        resume(tmp_path, "--resume", "runs/own", other)
    config, _ = resume(tmp_path, "--resume", "runs/own", "--config", str(tmp_path / "demo.yaml"))
    assert (config.name, config.optim.steps) == ("own", 90)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("runs/xyz", "runs/xyz holds no run: name the folder of one"),
        ("runs/owm", "did you mean --resume runs/own"),
        ("own", "did you mean --resume runs/own"),
        ("runs/own/student", "did you mean --resume runs/own"),
        ("runs/teacher", "is a run of pretrain: continue it with `dinov2-zoo pretrain --resume runs/teacher`"),
        ("runs/heads", "is a run of fit-heads: continue it with `dinov2-zoo fit-heads --resume runs/heads`"),
    ],
)
def test_what_is_no_run_of_this_recipe_is_refused(runs, tmp_path, asked, words):
    with pytest.raises(ConfigError, match=words):
        resume(tmp_path, "--resume", asked)
    assert not (runs / "demo").exists()


def test_a_distillation_is_no_pretraining(runs, tmp_path):
    with pytest.raises(ConfigError, match="`dinov2-zoo distill --resume runs/own`"):
        resume(tmp_path, "--resume", "runs/own", kind=PretrainConfig)
    config, _ = resume(tmp_path, "--resume", "runs/heads", kind=PretrainConfig)
    assert config.freeze_backbone


def test_a_run_of_another_version_is_refused(runs, tmp_path):
    record = json.loads((runs / "own/config.json").read_text())
    record["config"]["gone"] = 1
    (runs / "own/config.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="has no gone: the run was made by another version"):
        resume(tmp_path, "--resume", "runs/own")
