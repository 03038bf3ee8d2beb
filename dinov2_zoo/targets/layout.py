"""Where a store keeps what, and how large it is: all that follows from a few numbers.

A shard holds neighbouring places of one epoch's order, in which the loader asks for them: the first E epochs of a run
read a store of E epochs from end to end, later ones in another order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SHARD = 1024
"""Images per shard (chosen here: 68 MB of a ViT-g's, and at most so many are taught again after a kill)."""

ID_BYTES = 8
"""Bytes of an image's number, which stands beside its codes."""


@dataclass(frozen=True)
class Group:
    """Crops of one size."""

    views: int
    """Crops per image."""
    patches: int
    """Patches per crop."""


@dataclass(frozen=True)
class Shard:
    """Some places of an epoch's order: slots `first` to `first + count - 1`."""

    epoch: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"epoch-{self.epoch:03d}-{self.first // SHARD:06d}.safetensors"


@dataclass(frozen=True)
class Layout:
    """A whole store."""

    images: int
    epochs: int
    groups: tuple[Group, ...]
    """Sizes of crops, in the order of `Batch.groups`."""
    class_directions: int
    """Bytes of a class token."""
    directions: int
    """Bytes of a patch token."""

    def widths(self) -> list[tuple[int, int]]:
        """(views, bytes per crop) of each group."""
        return [(g.views, self.class_directions + g.patches * self.directions) for g in self.groups]

    def shards(self) -> Iterator[Shard]:
        """All of them, in order."""
        for epoch in range(self.epochs):
            for first in range(0, self.images, SHARD):
                yield Shard(epoch, first, min(SHARD, self.images - first))

    def shard_of(self, epoch: int, slot: int) -> Shard:
        """The one that holds a place."""
        first = slot // SHARD * SHARD
        return Shard(epoch, first, min(SHARD, self.images - first))

    def bytes_of(self, shards: Sequence[Shard] | None = None) -> int:
        """Size of some shards, without their headers of a few hundred bytes; default: of all.

        ViT-g/14 (1536 channels) on the 1,281,167 images of ImageNet-1k, two crops of 256 patches, 4 epochs, 128
        directions a patch and all channels of the class token: 351.6 GB (337.2 GB with 128 of the class token, too).
        """
        images = self.images * self.epochs if shards is None else sum(shard.count for shard in shards)
        return images * (ID_BYTES + sum(views * width for views, width in self.widths()))


def in_words(size: int) -> str:
    """Bytes as "350.6 GB" or "12.3 MB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
