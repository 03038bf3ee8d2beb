"""Which models an evaluation is about: their names in tables, and the folders of their records."""

import re
from dataclasses import dataclass
from pathlib import Path

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.hub.card import EVALUATION


@dataclass(frozen=True)
class Subject:
    """One model to be measured."""

    name: str
    """In tables and folders."""
    source: str
    """As `adapters.open_encoder` takes it."""
    folder: Path
    """For its records and heads."""

    @property
    def is_student(self) -> bool:
        """Whether it is what a run distilled."""
        return _beside(self.source) is not None


def subjects(text: str, out: str | None) -> list[Subject]:
    """Take a list of models apart.

    Args:
        text: Models separated by commas, each perhaps with a name of its own before an equals sign.
        out: Folder that gets one folder for each; None: beside a run's student, else runs/evaluation.

    Raises:
        ConfigError: Two have one name.
    """
    found: list[Subject] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        named = re.match(r"([\w.-]+)=(.+)", part)
        source = named[2] if named else part
        name = named[1] if named else _name(source)
        folder = _beside(source) if out is None else None
        found.append(Subject(name, source, folder or Path(out or "runs/evaluation") / name))
    names = [subject.name for subject in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"Several models are called {twice[0]}: name them, as in --model a={found[0].source},b=...")
    return found


def _name(source: str) -> str:
    """A run's name for its student, else the last word of the source."""
    path = Path(source)
    words = path.parent.name if _beside(source) else source.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]+", "-", words)


def _beside(source: str) -> Path | None:
    """Where a run keeps the records of its student, if that is what the source is."""
    path = Path(source)
    run = path.parent
    return run / EVALUATION if path.name == "student" and (run / "config.json").is_file() else None
