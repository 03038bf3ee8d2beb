"""What `--help` prints: the everyday options, one group of them, or all, with the values that are in force."""

import argparse
import ast
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from dinov2_zoo.arguments.parser import Parser
from dinov2_zoo.arguments.suggestions import nearest_option
from dinov2_zoo.errors import ConfigError

EVERYDAY = ("loader.batch_size", "optim.steps", "optim.base_lr", "crops.global_size", "objective.kind")
"""Options of groups that are shown beside those that stand in no group."""


def show_help(parser: Parser, topic: str, settings: Sequence[str], about: str) -> NoReturn:
    """Print a page of help, and exit.

    Args:
        parser: Of all options.
        topic: "": in short; "all"; a group, or an option.
        settings: Options that say which values are in force.
        about: What the short page and the whole one begin with.

    Raises:
        ConfigError: There is no such group or option.
    """
    values = parser.parse_args(settings)
    titles = {name: group.title or "" for name, group in (parser.groups or {}).items()}
    actions = {action.dest: action for action in parser._actions if action.dest not in titles}
    groups = {n: title for n, title in titles.items() if any(name.startswith(f"{n}.") for name in actions)}
    chosen: dict[str, list[str]] = {}
    if topic == "":
        names = [n for n in actions if ("." not in n or n in EVERYDAY) and n != "print_config"]
        chosen = {"options": names}
    else:
        for name in actions:
            if topic == "all" or name == topic or name.startswith(f"{topic}."):
                group = name.rpartition(".")[0]
                chosen.setdefault(f"{group}: {groups[group]}" if group else "options", []).append(name)
    if not chosen:
        raise ConfigError(f"There is no option or group `{topic}`: {nearest_option(topic, [*groups, *actions])}")

    # argparse's own parser lays the text out.
    page = argparse.ArgumentParser(
        usage=parser.usage,
        description=about if topic in ("", "all") else None,
        epilog=_outline(groups) if topic == "" else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    for title, names in chosen.items():
        section = page.add_argument_group(title)
        for name in names:
            action = actions[name]
            words = action.help or ""
            if topic == "":  # the first sentence
                words = re.split(r"(?<=[a-z)`\"]\.)\s", words, maxsplit=1)[0]
            hint = getattr(action, "_typehint", None)
            if hint is not None and values.get(name) not in (None, ""):
                value = values[name]
                words += f" (default: {value if isinstance(value, str) else json.dumps(value)})"
            metavar = action.metavar if hint is None else kind_of(hint)
            section.add_argument(*action.option_strings, dest=name, metavar=metavar, help=words.replace("%", "%%"))
    sys.stdout.write(page.format_help())
    raise SystemExit(0)


def _outline(groups: dict[str, str]) -> str:
    width = max(map(len, groups), default=0)
    lines = [f"  {name:{width}}  {title}" for name, title in groups.items() if "." not in name]
    return "\n".join(["groups of options: --help GROUP shows one, --help all everything", *lines]) if groups else ""


def kind_of(hint: Any) -> str:
    """A type as its values are written: "int|auto", "[float, float]"."""
    inside = get_args(hint)
    if get_origin(hint) is Literal:
        return "|".join(map(str, inside))
    if get_origin(hint) in (Union, UnionType):
        return "|".join(kind_of(part) for part in inside)
    if inside:
        return f"[{', '.join('...' if part is Ellipsis else kind_of(part) for part in inside)}]"
    return "null" if hint is type(None) else getattr(hint, "__name__", str(hint))


def abstract(script: Path) -> str:
    """The docstring of a file, which is not imported."""
    return ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
