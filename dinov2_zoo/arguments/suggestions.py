"""What was probably meant by an option that does not exist."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

SYNONYMS = {
    "amp": ("runtime.precision",),
    "batch": ("loader.batch_size",),
    "batch_size": ("loader.batch_size",),
    "bs": ("loader.batch_size",),
    "dataset": ("data", "data.train"),
    "device": ("runtime.cpu",),
    "dtype": ("runtime.precision",),
    "epochs": ("epochs", "optim.steps"),
    "image_size": ("crops.global_size", "size"),
    "images": ("data", "data.train"),
    "img_size": ("crops.global_size", "size"),
    "iterations": ("optim.steps", "steps"),
    "learning_rate": ("optim.base_lr",),
    "lr": ("optim.base_lr",),
    "max_steps": ("optim.steps", "steps"),
    "model": ("model", "student"),
    "num_workers": ("loader.workers",),
    "out": ("out", "runs"),
    "output": ("out", "runs"),
    "output_dir": ("out", "runs"),
    "resolution": ("crops.global_size", "size"),
    "seed": ("runtime.seed",),
    "size": ("size", "crops.global_size"),
    "steps": ("optim.steps",),
    "warmup": ("optim.warmup_steps",),
    "wd": ("optim.weight_decay",),
    "workers": ("loader.workers",),
}
"""Other packages' words for our options; the first that a command has is meant."""


def nearest_option(asked: str, names: Sequence[str]) -> str:
    """A hint for a name that does not exist.

    Args:
        asked: What was asked for, without leading dashes.
        names: Dotted names of all options.

    Returns:
        The end of a message: the option that is meant by that word elsewhere, or that is spelt most like it.
    """
    asked = asked.replace("-", "_")
    meant = next((name for name in SYNONYMS.get(asked, ()) if name in names), None)
    # A nested key may be reported by its last part only: compare with both spellings.
    candidates = {name: name for name in names} | {name.rsplit(".", 1)[-1]: name for name in reversed(names)}
    near = [meant] if meant else difflib.get_close_matches(asked, list(candidates), n=1, cutoff=0.5)
    return f"did you mean `{candidates[near[0]]}`?" if near else "see --help for every option."


def explain(message: str, names: Sequence[str]) -> str:
    """Shorten a message of jsonargparse's and end it with what to do.

    Args:
        message: Its own words.
        names: Dotted names of all options.
    """
    words = " ".join(message.split()) or "The command line is not understood."
    group = re.search(r"[Kk]ey \"([\w.]+)\": Unable to load config ['\"]?(.*?)['\"]?(?: - |$)", words)
    inside = [name for name in names if group and name.startswith(f"{group[1]}.")]
    if group and inside and not Path(group[2]).is_file():
        return (
            f"--{group[1]} is a group of options: name the one that you mean, as in `--{inside[0]} {group[2]}` "
            f"(--help {group[1]} shows all)."
        )
    if missing := re.search(r"arguments are required: (.+)", words):
        return f"Missing: {missing[1]}. --help says what is to be named."
    unknown = re.search(r"[Uu]nrecognized arguments: (.+)", message) or re.search(
        r"[Kk]ey (?:'|\")?([\w.]+)(?:'|\")? is not expected|does not accept option '([\w.]+)'", message
    )
    if unknown is None:
        end = "" if words[-1] in ".:!?" else "."
        return f"{words}{end} See --help for every option."
    word = next(g for g in unknown.groups() if g).split()[0]
    if not word.startswith("-") and unknown.re.groups == 1:
        return f"`{word}` is one word too many: see --help for what belongs there."
    asked = word.lstrip("-").split("=")[0]
    return f"Unknown option `{asked}`: {nearest_option(asked, names)}"
