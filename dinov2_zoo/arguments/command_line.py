"""A command line as a checked configuration, or as the arguments of a function."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dinov2_zoo.arguments.help_page import abstract, show_help
from dinov2_zoo.arguments.parser import Parser, config_parser
from dinov2_zoo.arguments.resume import resumed
from dinov2_zoo.arguments.words import placed, sorted_words, take
from dinov2_zoo.config import all_problems
from dinov2_zoo.errors import ConfigError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a recipe gets besides its configuration."""

    resume: str | None
    """Continue the run in the folder that the configuration's `runs` and `name` lead to: "auto" from its newest whole
    checkpoint (and begin it where there is none), "step-N" from that one; None: a new run."""


def parse(
    config_class: type[T],
    argv: Sequence[str] | None = None,
    *,
    script: Path | None = None,
    position: str | None = None,
    default_config: Path | None = None,
    own_data_config: Path | None = None,
    settings_of: Mapping[str, Callable[[str], dict[str, Any]]] | None = None,
    resumes: bool = True,
    either: tuple[str, str] | None = None,
) -> tuple[T, Arguments]:
    """Parse a command line into a checked configuration; `--help` prints and exits.

    Args:
        config_class: A frozen dataclass of `dinov2_zoo.config`.
        argv: Arguments without the program's name; None reads `sys.argv`.
        script: The recipe's file: its docstring begins the help, its name is the word after `dinov2-zoo`.
        position: The option that a word without an option's name sets: `distill PHOTOS` is `distill --data PHOTOS`.
        default_config: YAML file read first, unless `--config` names another or `--resume` a run.
        own_data_config: The same where data are named: the default is then a demo with images of its own.
        settings_of: Options that name something made earlier, and what reads its settings: they are then the defaults,
            before files, and its images count as named.
        resumes: Offer `--resume`.
        either: Two options that say the same in two ways, one thing and several: a command line may have one of them.

    Returns:
        The configuration, and the arguments that are not part of it.

    Raises:
        ConfigError: An option is unknown (the nearest is named), malformed or out of range, or `--resume` names no run
            of this recipe.
    """
    command = f"dinov2-zoo {script.stem.replace('_', '-')}" if script else Path(sys.argv[0]).name
    parts = (f"[{position.upper()}]" if position else "", "[--resume [RUN|step-N]]" if resumes else "")
    usage = " ".join([command, *filter(None, parts), "[--config FILE] [--option VALUE ...]"])
    parser = config_parser(config_class, usage=usage, resumes=resumes)
    options, alone = sorted_words(sys.argv[1:] if argv is None else argv, parser)
    options += placed(alone, options, position, command)
    if either and all(any(option.startswith(f"--{name}=") for option in options) for name in either):
        raise ConfigError(f"--{either[0]} and --{either[1]} both say what to train: leave one out.")
    topic, asked = take(options, "--help"), take(options, "--resume") if resumes else None
    resume, run = resumed(asked, config_class) if asked is not None else (None, {})

    # In whatever order they stand, options override files, and files the run that is continued.
    files = [option for option in options if option.startswith("--config=")]
    options = [option for option in options if option not in files]
    made = {name: value for name in settings_of or {} if (value := _value(options, name))}
    own_data = own_data_config is not None and (bool(made) or any(option.startswith("--data=") for option in options))
    preset = own_data_config if own_data else default_config
    about = abstract(script) if script else ""
    if run:
        apart = ("--name=", "--runs=", *([f"--{either[1]}="] if either else []))
        if other := next((o for o in options if o.startswith(apart)), None):
            raise ConfigError(f"--resume {asked} names the run already, and {other} another: leave one out.")
        files.insert(0, f"--config={json.dumps(run)}")
        options += as_options({"runs": run["runs"], "name": run["name"]})
        about += f"\n\nDefaults below are the settings of {asked}."
    elif preset is not None and not files:
        files = [f"--config={preset}"]
        about += f"\n\nDefaults below are those of {preset.name}, which is read unless --config names another file."
    if settings_of and not run:
        read = [f"--config={json.dumps(settings_of[name](value))}" for name, value in made.items()]
        # Behind the preset, which is read where no file is named; before files.
        files = [*files[:1], *read] if files == [f"--config={preset}"] else [*read, *files]
    if topic is not None:
        needed = [f.name for f in dataclasses.fields(config_class) if f.default is f.default_factory]  # pyright: ignore[reportArgumentType]
        show_help(parser, topic, [*(f"--{name}=" for name in needed), *files], about)
    with all_problems():
        values = parser.instantiate(parser.parse_args([*files, *options]))
        config = config_class(**{f.name: values[f.name] for f in dataclasses.fields(config_class)})  # pyright: ignore[reportArgumentType]
    return config, Arguments(resume)


def _value(options: Sequence[str], name: str) -> str | None:
    """What an option is set to last; None where it is not set, or to nothing."""
    found = [value for option, _, value in (o.partition("=") for o in options) if option == f"--{name}"]
    return found[-1] if found and found[-1] not in ("", "null") else None


def as_options(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings as options of a command line.

    Args:
        settings: By dotted name, {"optim.steps": 10}, or nested, {"optim": {"steps": 10}}.
        prefix: Before each name.
    """
    options: list[str] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            options += as_options(value, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            words = str(value) if isinstance(value, str | Path) else json.dumps(value)
            options.append(f"--{prefix}{name}={words}")
    return options


def call(function: Callable[..., Any], argv: Sequence[str], *, name: str) -> Any:
    """Call a function with what a command line says: parameters without a default by position, others as options.

    Args:
        function: Its docstring's first line and Args section are the help.
        argv: What follows the function's word.
        name: That word.

    Raises:
        ConfigError: An argument is missing, unknown (the nearest is named) or malformed.
    """
    summary = (function.__doc__ or "").splitlines()[0]
    parser = Parser(prog=f"dinov2-zoo {name}", description=summary, allow_abbrev=False)
    parser.add_function_arguments(function, as_positional=True)
    options, alone = sorted_words(argv, parser)
    return function(**parser.instantiate(parser.parse_args([*options, *alone])))
