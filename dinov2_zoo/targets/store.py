"""A finished store of targets, opened: what a distillation takes in place of a teacher."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dinov2_zoo.errors import DataError
from dinov2_zoo.models.stored import LinearCode, StoredBackbone, TokenCode
from dinov2_zoo.models.tokens import Tokens
from dinov2_zoo.targets.layout import Shard, in_words
from dinov2_zoo.targets.manifest import AGAIN, Manifest, read_manifest
from dinov2_zoo.targets.reader import TargetReader
from dinov2_zoo.targets.shards import check_shard

CODE, HELDOUT, CROPS = "code.safetensors", "heldout.safetensors", "crops.safetensors"
"""Files beside the shards: how tokens are coded, the teacher's tokens of held-out images, some crops as they were."""


class TargetStore:
    """What lies in a store's folder.

    Args:
        folder: Of the store.
        manifest: Its manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @property
    def epochs(self) -> int:
        """Epochs that are stored."""
        return self.manifest.layout.epochs

    def announce(self, epochs: float) -> str:
        """What a run of so many epochs will do, a sentence."""
        manifest = self.manifest
        size = f"{in_words(manifest.layout.bytes_of())} in {self.folder}"
        again = f", each seen {epochs / self.epochs:.3g} times" if epochs > self.epochs else ""
        return (
            f"The teacher, {manifest.settings['teacher']}, is not asked: what it said of the crops of {self.epochs} "
            f"epoch{'s' * (self.epochs != 1)} is taken from {size}{again}."
        )

    def reader(self, local_count: int) -> TargetReader:
        """Reads targets of the global crops and of some of the local ones, for the loader."""
        layout = self.manifest.layout
        return TargetReader(
            self.folder,
            layout,
            self.manifest.settings["runtime"]["seed"],
            views=(2, local_count) if local_count else (2,),
        )

    def code(self) -> TokenCode:
        """How tokens are coded."""
        found = self._load(CODE)
        kinds = [{k: found[f"{kind}.{k}"] for k in ("mean", "write", "read")} for kind in ("class_token", "patches")]
        return TokenCode(*(LinearCode(**kind) for kind in kinds))

    def backbone(self) -> StoredBackbone:
        """What stands where the teacher's network stood."""
        teacher = self.manifest.teacher
        return StoredBackbone(
            self.code(), patch_size=teacher.patch_size, parameters=teacher.parameters, norms=teacher.norms
        )

    def heldout(self, device: torch.device) -> Tokens:
        """The teacher's own tokens of the held-out images, not coded."""
        found = self._load(HELDOUT)
        return Tokens(found["class_token"].to(device), found["patches"].to(device))

    def probes(self) -> dict[str, Tensor]:
        """Some crops, as they were when the targets were stored (`checks.probe_crops`)."""
        return self._load(CROPS)

    def check_shard(self, shard: Shard, *, bytewise: bool) -> None:
        """Raise DataError unless a shard is what was written."""
        check_shard(self.folder, self.manifest.layout, shard, code=self.manifest.files[CODE], bytewise=bytewise)

    def lacks(self) -> list[Shard]:
        """Shards that are not there, or not whole."""
        return [shard for shard in self.manifest.layout.shards() if not self._has(shard)]

    def _has(self, shard: Shard) -> bool:
        if not (self.folder / shard.name).is_file():
            return False
        try:
            self.check_shard(shard, bytewise=False)
        except DataError:
            return False
        return True

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self.folder / name} is missing or damaged ({error}): get the store from where it was made, or "
                f"{AGAIN}."
            ) from error


def open_store(folder: str) -> TargetStore:
    """Open a finished store. What is in its shards is not looked at yet (`checks.check_bytes`).

    Raises:
        DataError: There is none, it is unfinished, damaged, or of another version.
    """
    place = Path(folder).expanduser()
    manifest = read_manifest(place)
    shards = list(manifest.layout.shards())
    there = sum((place / shard.name).is_file() for shard in shards)
    if not manifest.whole or there < len(shards):
        raise DataError(
            f"{place} is unfinished, {there} of {len(shards)} shards are there: run the same `dinov2-zoo "
            "store-targets` again, which goes on with it."
        )
    return TargetStore(place, manifest)
