"""The words of a command line: options with their values, and words that stand alone."""

import json
import re
from collections.abc import Sequence
from typing import get_args, get_origin

import jsonargparse

from dinov2_zoo.errors import ConfigError

YES_OR_NO = ("true", "false", "yes", "no")


def sorted_words(argv: Sequence[str], parser: jsonargparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """Tell options from words that stand alone; a yes-or-no option without a value means yes.

    An option that takes a list takes all words up to the next option, or one that is a list already, "[a, b]".

    Args:
        argv: As typed.
        parser: Knows the options; one that it does not know is taken to have a value.

    Returns:
        Options, as "--name=value" or "--name"; and the other words.
    """
    actions = {name: action for action in parser._actions for name in action.option_strings}
    options: list[str] = []
    alone: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            alone.append(word)
            continue
        if re.fullmatch(r"-[a-z](=.*)?", word):  # -k 5 for --k 5
            word = word.replace("-h", "--help", 1) if word[1] == "h" else f"-{word}"
        name, equals, value = word.partition("=")
        if name not in actions and (plain := "--" + name[2:].replace("-", "_")) in actions:  # --batch-size
            name, word = plain, f"{plain}{equals}{value}"
        action = actions.get(name)
        kind = getattr(action, "_typehint", None)
        yes_or_no = kind is bool
        if get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis:
            values = [value] if equals else []
            while not equals and words and _is_value(words[0], False):
                values.append(words.pop(0))
            whole = len(values) == 1 and values[0].startswith("[")
            parts = [part for text in values for part in text.split(",") if part]
            options.append(f"{name}={values[0] if whole else json.dumps(parts)}" if values else name)
        elif equals:
            options.append(word)
        elif words and _is_value(words[0], yes_or_no) and name != "--print_config" and getattr(action, "nargs", 1) != 0:
            options.append(f"{name}={words.pop(0)}")
        else:
            options.append(f"{name}=true" if yes_or_no else name)
    return options, alone


def _is_value(word: str, yes_or_no: bool) -> bool:
    """Whether a word after an option is its value; numbers may begin with a minus."""
    if yes_or_no:
        return word.lower() in YES_OR_NO
    return not word.startswith("-") or re.match(r"-\.?\d", word) is not None


def take(options: list[str], name: str) -> str | None:
    """Take an option out of a list: its value, "" where it has none; None where it is not there."""
    found = [option for option in options if option.partition("=")[0] == name]
    for option in found:
        options.remove(option)
    return found[-1].partition("=")[2] if found else None


def placed(alone: Sequence[str], options: Sequence[str], position: str | None, command: str) -> list[str]:
    """The word that stands alone as the option that it sets.

    Args:
        alone: Words that belong to no option.
        options: All others.
        position: Name of the option that one such word sets; None: it may not be there.
        command: Named in errors.

    Raises:
        ConfigError: There are several, or the option is given, too.
    """
    if not alone:
        return []
    if position is None:
        raise ConfigError(f"`{alone[0]}` belongs to no option: see --help for every option.")
    others = [*alone[1:], *(option for option in options if option.startswith(f"--{position}="))]
    if others:
        more = f"{others[0]} and {len(others) - 1} more" if len(others) > 1 else others[0]
        remedy = "name their folder" if position == "data" else "leave one out"
        raise ConfigError(f"{command} takes one {position.upper()}, not {alone[0]} and {more}: {remedy}.")
    return [f"--{position}={alone[0]}"]
