"""The command `dinov2-zoo`: its first word is a recipe or a command, and what follows is theirs."""

import difflib
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dinov2_zoo import __version__
from dinov2_zoo.arguments import abstract, call, run
from dinov2_zoo.commands import COMMANDS
from dinov2_zoo.errors import ConfigError

RECIPES = "dinov2_zoo.recipes"


def main() -> None:
    """Entry point of the command `dinov2-zoo`."""
    run(lambda: obey(sys.argv[1:]))


def obey(words: Sequence[str]) -> None:
    """Do what a command line says.

    Raises:
        ConfigError: There is no such command (the nearest is named), or what follows it is wrong.
    """
    word, rest = (words[0], list(words[1:])) if words else ("--help", [])
    recipes = recipe_files()
    if word in ("-h", "--help"):
        _overview(recipes)
    elif word == "--version":
        sys.stdout.write(f"dinov2-zoo {__version__}\n")
    elif word in recipes:
        # As `python -m` would: the recipe is the program, and answers --help before it imports torch.
        sys.argv = [f"dinov2-zoo {word}", *rest]
        runpy.run_module(f"{RECIPES}.{recipes[word].stem}", run_name="__main__", alter_sys=True)
    elif word in COMMANDS:
        call(COMMANDS[word], rest, name=word)
    else:
        known = [*recipes, *COMMANDS]
        near = difflib.get_close_matches(word.replace("_", "-"), known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"use one of {', '.join(known)}."
        raise ConfigError(f"There is no command `{word}`: {hint}")


def recipe_files() -> dict[str, Path]:
    """The recipes by the words that run them, as in "fit-heads"."""
    spec = importlib.util.find_spec(RECIPES)
    folders = (spec.submodule_search_locations if spec else None) or []
    files = sorted(file for folder in folders for file in Path(folder).glob("[!_]*.py"))
    return {file.stem.replace("_", "-"): file for file in files}


def _overview(recipes: dict[str, Path]) -> None:
    console = Console(highlight=False)
    console.print("usage: dinov2-zoo COMMAND [ARGUMENTS]   (COMMAND --help says more)\n", markup=False)
    for title, summaries in (
        ("runs", {word: abstract(file).splitlines()[0] for word, file in recipes.items()}),
        ("models and runs", {word: (function.__doc__ or "").splitlines()[0] for word, function in COMMANDS.items()}),
    ):
        console.print(f"{title}:", markup=False)
        rows = Table.grid(padding=(0, 2))
        for word, summary in summaries.items():
            rows.add_row(Text(f"  {word}"), Text(summary))
        console.print(rows)
    console.print("\n--version prints the version.", markup=False)
