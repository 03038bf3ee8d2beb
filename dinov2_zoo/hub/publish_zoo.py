"""Meta's DINOv2 models onto the Hub, each a folder that three libraries load: fetched, converted, verified, uploaded.

One model at a time, small to large, and its files are deleted when it is up. Whatever ends the work, the same command
goes on with it: what was fetched lies in the working folder, and what is on the Hub already is not made again.
"""

import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dinov2_zoo.errors import CheckpointError, ConfigError, HubError, how_to_install
from dinov2_zoo.files import sha256_of
from dinov2_zoo.hub.card import record_of_source
from dinov2_zoo.hub.convert import convert
from dinov2_zoo.hub.load import Remote, download, look_up, upload
from dinov2_zoo.hub.publish import RECORD, write_card
from dinov2_zoo.hub.registry import REGISTRY
from dinov2_zoo.hub.verify import require, verify
from dinov2_zoo.models.zoo import MODELS
from dinov2_zoo.weights.checksums import write_checksums
from dinov2_zoo.weights.read import find_weights, load_weights
from dinov2_zoo.weights.save import writing

State = Literal["to do", "done", "not looked up"]

MARGIN = 1.05
"""Disk asked for beyond the weights themselves (chosen here: configurations, cards, a file system's own needs)."""


@dataclass(frozen=True)
class Item:
    """One model to be published."""

    name: str
    """Short name in the registry."""
    source: str
    """Hub id that it is fetched from."""
    target: str
    """Hub id that it goes to."""
    weights: int
    """Bytes of its parameters in fp32, as the source stores them."""
    state: State = "not looked up"

    @property
    def uploaded(self) -> int:
        """Bytes that go up: the weights under timm's names and under transformers'."""
        return 2 * self.weights

    @property
    def disk(self) -> int:
        """Bytes that it needs in the working folder at once: the source and both files."""
        return round(MARGIN * 3 * self.weights)


def plan(namespace: str, only: Sequence[str] = ()) -> list[Item]:
    """Which models go where, small to large; asks nobody.

    Args:
        namespace: Owner on the Hub, a person or an organisation.
        only: Short names; default: all of the registry.

    Raises:
        ConfigError: A name is not in the registry, or the namespace is no owner.
    """
    if not namespace or "/" in namespace:
        raise ConfigError(f"`{namespace}` is no owner on the Hub: name a user or an organisation, without a slash.")
    if unknown := [name for name in only if name not in REGISTRY]:
        raise ConfigError(f"There is no published model {', '.join(unknown)}: use {', '.join(REGISTRY)}.")
    entries = sorted((REGISTRY[name] for name in only or REGISTRY), key=lambda entry: entry.parameters)
    return [Item(e.name, e.repository, f"{namespace}/{e.name}", 4 * e.parameters) for e in entries]


def look_up_states(items: Sequence[Item], *, token: str | None = None) -> list[Item]:
    """The plan with what the Hub says of each: done, or to do."""
    return [replace(item, state="done" if _done(item, look_up(item.source), token) else "to do") for item in items]


def publish_zoo(
    items: Sequence[Item],
    work: Path,
    *,
    public: bool = False,
    token: str | None = None,
    say: Callable[[str], object] = print,
) -> list[str]:
    """Publish the models of a plan that are not on the Hub yet.

    Args:
        items: From `plan`.
        work: Folder that one model at a time lies in; made, and removed when all are done.
        public: Let everybody see the repositories. Otherwise new ones are private, and public ones are refused.
        token: Of the Hub; default: from HF_TOKEN or `hf auth login`.
        say: Called with a line for each thing done.

    Returns:
        Addresses of what was uploaded now.

    Raises:
        ConfigError: The disk is too small, or transformers is not installed, without which a third is not verified.
        HubError: The Hub cannot be reached, or refuses. What was fetched is kept.
        ZooError: A model is not what it should be; it is not uploaded.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            f"The models are verified in transformers, which is missing: {how_to_install('transformers')}."
        )
    addresses: list[str] = []
    for item in items:
        source = look_up(item.source)
        if source is None:
            raise HubError(f"The Hub has no model {item.source} that you may read: `hf auth login`, or leave it out.")
        if _done(item, source, token):
            say(f"{item.name}: on the Hub already, at the same checksum")
            continue
        folder = work / item.name
        with writing(work):
            folder.mkdir(parents=True, exist_ok=True)
            held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        if (free := shutil.disk_usage(folder).free + held) < item.disk:
            raise ConfigError(
                f"{item.name} needs {item.disk / 2**30:.1f} GiB in {work}, where {free / 2**30:.1f} GiB are free: make "
                "room, name another folder with --work, or leave it out with --only."
            )
        say(f"{item.name}: fetching {item.source}, {item.weights / 2**30:.1f} GiB")
        model = _made(item, source, folder, say)
        say(f"{item.name}: uploading to {item.target}")
        addresses.append(upload(model, item.target, private=not public, token=token))
        shutil.rmtree(folder)
        say(f"{item.name}: published at {addresses[-1]}")
    if work.is_dir() and not any(work.iterdir()):
        work.rmdir()
    return addresses


def _made(item: Item, source: Remote, folder: Path, say: Callable[[str], object]) -> Path:
    """Fetch a model, convert it, verify it, and give it its card."""
    entry = REGISTRY[item.name]
    fetched, model = folder / item.source.replace("/", "--"), folder / "model"
    revision = entry.revision or source.revision
    download(item.source, fetched, revision=revision)
    file = find_weights(fetched)
    checksum = sha256_of(file)
    expected = entry.sha256 or source.checksums.get(file.name, checksum)
    if checksum != expected:
        shutil.rmtree(folder)
        raise HubError(
            f"{item.source} gave another {file.name} than it names ({checksum[:12]}, not {expected[:12]}): it was "
            "removed; run the same command again."
        )
    config, _ = load_weights(fetched)
    if replace(config, layer_scale=MODELS[item.name].layer_scale) != MODELS[item.name]:
        raise CheckpointError(f"{item.source} holds another architecture than {item.name}: leave it out with --only.")
    say(f"{item.name}: converting, verifying")
    shutil.rmtree(model, ignore_errors=True)
    convert(fetched, model, "zoo")
    checks = verify(str(model))
    require(checks, item.name)
    say(f"{item.name}: {sum(check.passed is True for check in checks)} checks passed")
    converted = sha256_of(model / "model.safetensors")
    facts = {"revision": revision, "file": file.name, "sha256": checksum, "converted_sha256": converted}
    with writing(model):
        write_card(model, record_of_source(item.name, facts), item.target)
        if licence := _licence():
            (model / "LICENSE").write_text(licence)
        write_checksums(model)
    return model


def _done(item: Item, source: Remote | None, token: str | None) -> bool:
    """Whether the target holds what the source would give now: its record names both checksums."""
    target = look_up(item.target, token=token)
    if source is None or target is None or RECORD not in target.names:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        download(item.target, Path(scratch), revision=target.revision, patterns=[RECORD], token=token)
        said = json.loads((Path(scratch) / RECORD).read_text()).get("source", {})
    theirs = source.checksums.get(said.get("file"))
    return theirs is not None and (theirs, target.checksums.get("model.safetensors")) == (
        said.get("sha256"),
        said.get("converted_sha256"),
    )


def _licence() -> str | None:
    """The Apache licence's text, which whoever passes the weights on must pass on too; this package carries it."""
    # A checkout that was installed has two entries, of which one may be without files.
    texts = [d.read_text("licenses/LICENSE") for d in importlib.metadata.distributions(name="dinov2-zoo")]
    return next(filter(None, texts), None)
