"""Command line: parse into typed configuration, call, exit code. No logic of its own lives here."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse

from dinov2_zoo.commands import COMMANDS, CONFIGURED
from dinov2_zoo.errors import ConfigError, Preempted, ZooError

# torch's threads spin while they wait for one another unless told otherwise before torch is loaded: beside processes
# that decode on the same cores, that tripled an evaluation's CPU time (2 cores). What the user has set is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

T = TypeVar("T")

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a recipe gets besides its configuration."""

    resume: str | None
    """Continue the run that the run folder holds: "auto" from its newest whole checkpoint, "step-N" from that one."""


class _Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults and types, and leaves the recipe's abstract as it was written."""


class _Parser(jsonargparse.ArgumentParser):
    """Turns an unknown option or key into an error that names the nearest one."""

    def error(self, message: str, ex: BaseException | None = None) -> NoReturn:
        raise ConfigError(_explain(message, option_names(self)))


def option_names(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Dotted names of every option of a parser."""
    return sorted({s[2:] for action in parser._actions for s in action.option_strings if s.startswith("--")})


def _explain(message: str, names: Sequence[str]) -> str:
    """Shorten jsonargparse's message and add the nearest option name where a name was unknown."""
    words = " ".join(message.split()) or "The command line is not understood."
    unknown = re.search(r"[Uu]nrecognized arguments: (.+)", message) or re.search(
        r"[Kk]ey (?:'|\")?([\w.]+)(?:'|\")? is not expected|does not accept option '([\w.]+)'", message
    )
    if unknown is None:
        end = "" if words[-1] in ".:!?" else "."
        return f"{words}{end} See --help for every option."
    word = next(g for g in unknown.groups() if g).split()[0]
    asked = word.lstrip("-").split("=")[0]
    # A nested key may be reported by its last part only: compare with both spellings.
    candidates = {name: name for name in names} | {name.rsplit(".", 1)[-1]: name for name in reversed(names)}
    near = difflib.get_close_matches(asked, list(candidates), n=1, cutoff=0.5)
    hint = f"did you mean `{candidates[near[0]]}`?" if near else "see --help for every option."
    return f"Unknown option `{asked}`: {hint}"


def parse(
    config_class: type[T],
    argv: Sequence[str] | None = None,
    *,
    description: str = "",
    default_config: Path | None = None,
    own_data_config: Path | None = None,
    resumes: bool = True,
) -> tuple[T, Arguments]:
    """Parse a command line into a checked configuration.

    Args:
        config_class: A frozen dataclass of `dinov2_zoo.config`.
        argv: Arguments without the program's name; None reads `sys.argv`.
        description: First lines of `--help`.
        default_config: YAML file read first, unless `--config` names another.
        own_data_config: The same where `--data` is given: the default is then a demo with images of its own.
        resumes: Offer `--resume`.

    Returns:
        The configuration and the arguments that are not part of it.

    Raises:
        ConfigError: An option is unknown (the nearest is named), malformed or out of range.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    given = {argument.split("=")[0] for argument in argv}
    if own_data_config is not None and "--data" in given:
        default_config = own_data_config
    parser = _Parser(
        allow_abbrev=False,
        description=description,
        usage=f"%(prog)s [--config FILE] {'[--resume [step-N]] ' if resumes else ''}[--option VALUE ...]",
        formatter_class=_Formatter,
    )
    shown = f" (default: {default_config.name})" if default_config else ""
    parser.add_argument("--config", action="config", help=f"YAML file of settings; options override it{shown}")
    if resumes:
        parser.add_argument(
            "--resume",
            nargs="?",
            const="auto",
            metavar="auto|step-N",
            help="continue the run that the run folder holds, from its newest whole checkpoint or the one named; "
            "begin it where there is none",
        )
    parser.add_class_arguments(config_class, None)
    if default_config is not None and "--config" not in given:
        argv = ["--config", str(default_config), *argv]
    namespace = parser.parse_args(argv)
    arguments = Arguments(resume=namespace.pop("resume") if resumes else None)
    namespace.pop("config")
    return _made(config_class, parser.instantiate(namespace)), arguments


def _made(config_class: type[T], values: Any) -> T:
    """A configuration of parsed values."""
    return config_class(**{f.name: values[f.name] for f in dataclasses.fields(config_class)})  # pyright: ignore[reportArgumentType]


def run(main: Callable[[], Any]) -> NoReturn:
    """Run a recipe's main; a user's error is printed as one sentence, without a traceback, and exits with 2.

    A run that was told to stop exits with 75, see `dinov2_zoo.errors.Preempted`.
    """
    try:
        main()
    except ZooError as error:
        sys.stderr.write(f"{'stopped' if isinstance(error, Preempted) else 'error'}: {error}\n")
        raise SystemExit(error.exit_code) from None
    raise SystemExit(0)


def main() -> None:
    """Entry point of the command `dinov2-zoo`: what is done with runs and models besides the recipes."""

    def call() -> None:
        jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
        parser = _Parser(prog="dinov2-zoo", description="Look after DINOv2 runs and models.", allow_abbrev=False)
        choices = parser.add_subcommands(metavar="COMMAND", title="commands", description="COMMAND --help tells more.")
        for name, function in COMMANDS.items():
            summary = (function.__doc__ or "").splitlines()[0]
            command = _Parser(description=summary, allow_abbrev=False)
            if name in CONFIGURED:
                command.add_argument("--config", action="config", help="YAML file of settings; options override it")
                command.add_class_arguments(CONFIGURED[name], None)
            else:
                command.add_function_arguments(function, as_positional=True)
            choices.add_subcommand(name, command, help=summary)
        chosen = parser.parse_args()
        name, values = chosen.subcommand, parser.instantiate(chosen)[chosen.subcommand]
        if name in CONFIGURED:
            COMMANDS[name](_made(CONFIGURED[name], values))
        else:
            COMMANDS[name](**values)

    run(call)
