"""What a teacher said of an image's crops, read out of a store by the loader's processes."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

from jaxtyping import Int8
from torch import Tensor

from dinov2_zoo.data.order import epoch_order
from dinov2_zoo.targets.layout import Layout, Shard
from dinov2_zoo.targets.shards import IDS, codes_of, open_shard

OPEN = 128
"""Shards that a process keeps open: operating systems allow about a thousand files."""


class TargetReader:
    """Reads single rows of a store's shards, memory-mapped.

    Args:
        folder: Of the store.
        layout: Of the store.
        seed: Decides the order in which places lie.
        views: Crops of each group to read, from the first on; groups behind the last one are left out.
    """

    def __init__(self, folder: Path, layout: Layout, seed: int, *, views: tuple[int, ...]) -> None:
        self.folder = folder
        self.layout = layout
        self.seed = seed
        self.views = views
        self._opened: OrderedDict[Shard, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict()}  # each process opens its own

    @property
    def epochs(self) -> int:
        """Epochs that are stored."""
        return self.layout.epochs

    def read(self, epoch: int, sample_id: int) -> list[Int8[Tensor, "V F"]] | None:
        """Codes of an image's crops, a group each; None where the image could not be decoded when they were made.

        Args:
            epoch: Stored epoch, 0 to `epochs` - 1.
            sample_id: Number of the image.

        Raises:
            DataError: The shard is gone.
        """
        slot = epoch_order(self.layout.images, self.seed, epoch).slot_of(sample_id)
        shard = self.layout.shard_of(epoch, slot)
        row, opened = slot - shard.first, self._open(shard)
        if int(opened.get_slice(IDS)[row : row + 1]) != sample_id:
            return None
        return [opened.get_slice(codes_of(i))[row : row + 1, :views][0] for i, views in enumerate(self.views)]

    def _open(self, shard: Shard) -> Any:
        opened = self._opened.pop(shard, None) or open_shard(self.folder / shard.name)
        self._opened[shard] = opened
        if len(self._opened) > OPEN:
            self._opened.popitem(last=False)
        return opened
