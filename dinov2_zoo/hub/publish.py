"""A model onto the Hub: gathered in one folder with its card and checksums, verified, uploaded in one commit."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.files import sha256_of
from dinov2_zoo.hub.card import leaderboard, record_of_run, render
from dinov2_zoo.hub.load import upload
from dinov2_zoo.hub.verify import CHECKSUMS, Check, require, verify

RECORD = "record.json"
"""All that the card says, and the resolved settings of the run, for programs."""


@dataclass(frozen=True)
class Publication:
    """What was, or would be, uploaded."""

    files: dict[str, int]
    """Size of each file, bytes, by name in the repository."""
    checks: list[Check]
    address: str | None
    """Where it is now; None: a dry run."""


def publish(
    source: Path,
    repository: str,
    *,
    really: bool = False,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> Publication:
    """Publish a finished distillation, or a saved model.

    Args:
        source: A run folder, whose student is published with a card made from the run's measurements; or the folder of
            a saved model, which is published as it is, with its README.md if it has one.
        repository: Hub id, owner/name; the owner may be an organisation.
        really: Upload. Otherwise everything else is done, to see what would be uploaded.
        private: Make a new repository private.
        revision: Branch to commit to, made if need be; default: main.
        token: Of the Hub; default: from HF_TOKEN or `hf auth login`.

    Raises:
        ConfigError: There is nothing to publish.
        ZooError: The model does not pass `verify`.
        HubError: The Hub cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        gather(source, folder, repository)
        checks = verify(str(folder))
        require(checks, str(source))
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        address = upload(folder, repository, private=private, revision=revision, token=token) if really else None
    return Publication(files, checks, address)


def gather(source: Path, folder: Path, repository: str) -> None:
    """Fill a new folder with all that belongs to a model's repository.

    Raises:
        ConfigError: `source` is neither a finished distillation nor a saved model.
    """
    run = (source / "student").is_dir()
    model = source / "student" if run else source
    if not (model / "model.safetensors").is_file():
        raise ConfigError(f"{source} holds no student and no model.safetensors: name a finished run or a saved model.")
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns(".*", "*.bin", "*.pth"))
    if run:
        record = record_of_run(source)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        card = render(record).replace("PATH_OR_ID", repository).replace("hf-hub:ID", f"hf-hub:{repository}")
        (folder / "README.md").write_text(card)
        if entries := leaderboard(record):
            (folder / ".eval_results").mkdir()
            (folder / ".eval_results/results.yaml").write_text(yaml.safe_dump(entries, sort_keys=False))
        for name in ("features.jpg", "report.html"):
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    (folder / CHECKSUMS).write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in files))
