"""A model onto the Hub: gathered in one folder with its card and checksums, verified, uploaded in one commit.

What was not asked for stays here: photos, folders' names, a licence, a public repository.
"""

import json
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dinov2_zoo.errors import ConfigError, ZooError
from dinov2_zoo.hub.card import Record, leaderboard, record_of_model, record_of_run, render
from dinov2_zoo.hub.load import upload
from dinov2_zoo.hub.verify import Check, require, verify
from dinov2_zoo.weights.checksums import CHECKSUMS, compare_checksums, write_checksums
from dinov2_zoo.weights.read import load_weights
from dinov2_zoo.weights.save import writing

RECORD = "record.json"
"""All that the card says, and the resolved settings of the run, for programs."""

CARD = "README.md"
PICTURE = "features.jpg"

# What belongs to a model's repository; whatever else lies in its folder was put there by somebody for something else.
PUBLISHED = ("config.json", "preprocessor_config.json", CARD, RECORD, CHECKSUMS, "LICENSE", "NOTICE")
PUBLISHED_SUFFIXES = (".safetensors", ".safetensors.index.json", ".onnx")


@dataclass(frozen=True)
class Publication:
    """What was, or would be, uploaded."""

    files: dict[str, int]
    """Size of each file, bytes, by name in the repository."""
    left_out: list[str]
    """What was there and stays here, each with the reason."""
    checks: list[Check]
    licence: str | None
    """As the card made here states it; None: not stated."""
    own_card: bool
    """The model had a card, which goes up as it is."""
    address: str | None
    """Where it is now; None: a dry run."""


def publish(
    source: Path,
    repository: str,
    *,
    really: bool = False,
    public: bool = False,
    pictures: bool = False,
    licence: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Publication:
    """Publish a finished distillation, or a saved model.

    Args:
        source: A run folder, whose student is published with a card made from the run's measurements; or the folder of
            a saved model, which is published with its README.md, or with a card that tells its shape.
        repository: Hub id, owner/name; the owner may be an organisation.
        really: Upload. Otherwise everything else is done, to see what would be uploaded.
        public: Let everybody see the repository. Otherwise a new one is private, and one that is public is refused.
        pictures: Upload the picture of held-out photos too. Otherwise only if they are photos that packages ship.
        licence: Under which the weights are given away, the Hub's identifier; None: the card says "not stated".
        revision: Branch to commit to, made if need be; default: main.
        token: Of the Hub; default: from HF_TOKEN or `hf auth login`.

    Raises:
        ConfigError: There is nothing to publish, the licence is no identifier, or a file names a folder of this
            machine.
        ZooError: The model does not pass `verify`.
        HubError: The Hub cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        with writing(folder):
            left_out = gather(source, folder, repository, licence=licence, pictures=pictures)
        checks = verify(str(folder))
        require(checks, str(source))
        _check_private(folder, private_words(source))
        files = sizes(folder)
        address = upload(folder, repository, private=not public, revision=revision, token=token) if really else None
    own_card = not (source / "student").is_dir() and (source / CARD).is_file()
    return Publication(files, left_out, checks, licence, own_card, address)


def sizes(folder: Path) -> dict[str, int]:
    """Size of each file of a folder, bytes, by path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def gather(
    source: Path, folder: Path, repository: str, *, licence: str | None = None, pictures: bool = False
) -> list[str]:
    """Fill a new folder with all that belongs to a model's repository.

    Returns:
        What stays here, each with the reason.

    Raises:
        ConfigError: `source` is neither a finished distillation nor a saved model, or a licence is named twice.
        ZooError: Its files are not those that were saved.
    """
    run = (source / "student").is_dir()
    model = source / "student" if run else source
    if not (model / "model.safetensors").is_file():
        raise ConfigError(f"{source} holds no student and no model.safetensors: name a finished run or a saved model.")
    _check_whole(model)
    left_out: list[str] = []
    folder.mkdir(parents=True)
    for path in sorted(model.iterdir()):
        if path.is_file() and (path.name in PUBLISHED or path.name.endswith(PUBLISHED_SUFFIXES)):
            shutil.copyfile(path, folder / path.name)
        elif not path.name.startswith("."):
            left_out.append(f"{path.name}: no part of a model")
    if run:
        record = record_of_run(source, licence=licence)
        if (source / PICTURE).is_file():
            if pictures or _of_packages(source):
                shutil.copyfile(source / PICTURE, folder / PICTURE)
                record["picture"] = PICTURE
            else:
                left_out.append(f"{PICTURE}: it shows your photos; --pictures uploads it")
        if (source / "report.html").is_file():
            left_out.append("report.html: it shows photos and names folders; the card holds its results")
        write_card(folder, record, repository)
        if entries := leaderboard(record):
            (folder / ".eval_results").mkdir()
            (folder / ".eval_results/results.yaml").write_text(yaml.safe_dump(entries, sort_keys=False))
    elif not (folder / CARD).is_file():
        config, _ = load_weights(model)
        write_card(folder, record_of_model(config, repository.rsplit("/", 1)[-1], licence), repository)
    elif licence is not None:
        raise ConfigError(f"{source} has a card of its own: state the licence in its {CARD}, not here.")
    write_checksums(folder)
    return left_out


def write_card(folder: Path, record: Record, repository: str) -> None:
    """Write a record, and the card that it gives, with the repository's id in place of those to be filled in."""
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    card = render(record).replace("PATH_OR_ID", repository).replace("hf-hub:ID", f"hf-hub:{repository}")
    (folder / CARD).write_text(card.replace("NAMESPACE", repository.split("/")[0]))


def _check_whole(model: Path) -> None:
    """New checksums are about to be written: what was damaged since it was saved must not get any."""
    compared = compare_checksums(model)
    wrong = [f"{name} {kind}" for kind, names in compared.differences.items() for name in names] if compared else []
    if wrong:
        raise ZooError(f"{model} is not what it says ({', '.join(wrong)}): do not use or publish it; save it again.")


def _settings(source: Path) -> dict[str, Any]:
    file = source / "config.json"
    return json.loads(file.read_text()).get("config", {}) if file.is_file() else {}


def _of_packages(run: Path) -> bool:
    """Whether the photos kept out of a run's training are photos that packages ship."""
    config = _settings(run)
    return str(config["evaluation"]["heldout"] or config["data"]).startswith("package:")


def private_words(source: Path) -> set[str]:
    """Paths of this machine that nothing published may hold: the model's, home, and those in a run's settings."""
    paths = {Path.home(), source}
    for run in (source, source.resolve().parent):  # a student is published from its run's folder too
        if settings := _settings(run):
            paths |= {run, *(Path(text).expanduser() for text in _strings(settings) if re.search(r"[\\/]", text))}
    words = {str(path) for path in paths if path.is_absolute()}
    words |= {str(path.resolve()) for path in paths if path.exists()}
    return {word for word in words if len(word) > 3}


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _check_private(folder: Path, words: Iterable[str]) -> None:
    """Raise if a file holds a path of this machine; of weights, whose bytes can say anything, the header is read."""
    for name in sizes(folder):
        file = folder / name
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as held:
            end = 8 + int.from_bytes(held[:8], "little") if file.suffix == ".safetensors" else len(held)
            for word in words:
                spelling = b"|".join({re.escape(os.fsencode(word)), re.escape(json.dumps(word)[1:-1].encode())})
                if re.compile(rb"(?<![\w.-])(?:" + spelling + rb")(?![\w.-])").search(held, 0, end):
                    raise ConfigError(f"{name} names a folder of this machine ({word}): remove it there first.")
