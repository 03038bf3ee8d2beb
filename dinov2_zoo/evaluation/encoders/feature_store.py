"""Features of a source's images on disk: made once, in shards, by any number of processes, resumed after a stop.

A shard holds the features of a fixed range of images. It is written aside and renamed when whole, so what carries a
shard's name is finished; its content's digest tells later damage. The number of each image travels with its features.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dinov2_zoo.data.preprocess import eval_image, normalise, to_uint8
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.features import WORKERS, Features, part_features
from dinov2_zoo.evaluation.encoders.reading import ReadImages
from dinov2_zoo.evaluation.record import checksum
from dinov2_zoo.evaluation.workspace import Workspace
from dinov2_zoo.files import atomic_write

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, pixels."""
SHARD = 1024
"""Images in a shard (chosen here: a minute or two of work on a CPU, 1.5 MB at width 768)."""


@dataclass(frozen=True)
class Kind:
    """Which features of an image are kept, all with the final norm."""

    size: int = 224
    """Image side, pixels: short side to size * 256/224, centre crop."""
    blocks: int = 1
    """Class tokens of so many last blocks, the last block's at the end."""
    mean: bool = False
    """After them the mean of the last block's patch tokens."""
    scales: tuple[float, ...] = ()
    """Instead of all that the L2-normalised class token of the whole image, its longest side being `size` times each of
    these; the mean, normalised again. Empty: of the centre crop."""

    def __str__(self) -> str:
        whole = "".join(f"-{scale:g}" for scale in self.scales)
        return f"{self.size}-{self.blocks}{'m' if self.mean else ''}{whole}"

    def width(self, dim: int) -> int:
        """Numbers per image, of a model of width `dim`."""
        return dim * (self.blocks + self.mean)


@dataclass(frozen=True)
class Stored:
    """What a store holds, in the order of the source, each image once, on the CPU."""

    features: Float[Tensor, "n W"]
    """fp16, not normalised."""
    labels: Int64[Tensor, " n"] | None
    """Class numbers, if the source has any."""
    indices: Int64[Tensor, " n"]
    """Numbers of the images in the source."""
    skipped: dict[str, str]
    """Images that could not be decoded, with the reason."""


def source_checksum(source: Source) -> str:
    """Checksum of the names and labels of a source's images, in order."""
    labels = source.labels or []
    names = (source.name(i) for i in range(len(source)))
    return checksum([*names, *labels])


def stored_features(
    encoder: LayeredEncoder,
    source: Source,
    kind: Kind,
    workspace: Workspace,
    *,
    batch_size: int = 64,
    workers: int = WORKERS,
) -> Stored:
    """Read the features of a source's images, making those first that are not there yet.

    Args:
        encoder: The model.
        source: Images.
        kind: Which features.
        workspace: The store lies in `features` in its folder, under a name that follows from model, images and kind.
            Processes share the shards among themselves; each then reads all of them.
        batch_size: Images per forward pass.
        workers: Decoding processes.

    Raises:
        DataError: A shard is damaged, or belongs to another model; names the file.
    """
    owner = {
        "model": encoder.fingerprint(),
        "source": source_checksum(source),
        "kind": str(kind),
    }
    context = workspace.context
    store = workspace.folder / "features" / f"{owner['model'][:8]}-{owner['source'][:8]}-{kind}"
    ranges = [range(first, min(first + SHARD, len(source))) for first in range(0, len(source), SHARD)]
    lacking = [number for number in range(len(ranges)) if not _shard(store, number).is_file()]
    context.barrier()  # nobody writes before all have looked
    if lacking:
        size = f"{len(source) * kind.width(encoder.dim) * 2 / 1e6:,.1f} MB"
        shards = f"{len(lacking)} of {len(ranges)} shards"
        workspace.say(f"features: {len(source):,} images, {size} in {store}; {shards}")
    mine = lacking[context.rank :: context.world_size]
    parts = [ranges[number] for number in mine]
    made = kind_features(encoder, source, kind, parts, batch_size=batch_size, workers=workers)
    for number, found in zip(mine, made, strict=True):
        skipped = {skip.name: skip.reason for skip in found.skipped}
        _write(_shard(store, number), found.features.half(), torch.tensor(found.indices), owner, skipped)
    context.barrier()
    return _read(store, len(ranges), owner, source)


@dataclass(frozen=True)
class _Prepare:
    """A part of an image, or all of it, as a kind of features wants it."""

    kind: Kind
    boxes: Mapping[int, Box]

    def __call__(self, image: Image.Image, index: int, randomness: torch.Generator) -> Tensor:
        if index in self.boxes:
            left, top, right, bottom = self.boxes[index]
            image = image.crop((round(left), round(top), round(right), round(bottom)))
        return to_uint8(image) if self.kind.scales else eval_image(image, self.kind.size)


def kind_features(
    encoder: LayeredEncoder,
    source: Source,
    kind: Kind,
    parts: Sequence[Sequence[int]],
    *,
    boxes: Mapping[int, Box] | None = None,
    batch_size: int = 64,
    workers: int = WORKERS,
) -> Iterator[Features]:
    """Compute features of some parts of a source, one after the other, without storing them.

    Args:
        encoder: The model.
        source: Images.
        kind: Which features.
        parts: Numbers of the images of each part.
        boxes: Left, top, right, bottom in pixels, by image: only that part is seen.
        batch_size: Images per forward pass; whole images go one by one, for each has a size of its own.
        workers: Decoding processes.
    """

    def take(images: Tensor) -> Tensor:
        if kind.scales:
            return whole_image_feature(encoder, images[0], kind.size, kind.scales)
        return last_features(encoder, images, kind.blocks, mean=kind.mean)

    read = ReadImages(source, _Prepare(kind, boxes or {}))
    return part_features(take, read, parts, 1 if kind.scales else batch_size, workers)


def whole_image_feature(
    encoder: LayeredEncoder, pixels: UInt8[Tensor, "3 H W"], size: int, scales: Sequence[float]
) -> Float[Tensor, "1 D"]:
    """Class token of a whole image, L2-normalised; over several scales the mean, normalised again (DINO v1's script).

    Args:
        encoder: The model.
        pixels: 0..255.
        size: Longest side at scale 1, pixels; both sides are rounded to multiples of the patch.
        scales: Of the longest side.
    """
    total = torch.zeros(1, encoder.dim)
    for scale in scales:
        factor = size * scale / max(pixels.shape[1:])
        sides = [max(1, round(side * factor / encoder.patch_size)) * encoder.patch_size for side in pixels.shape[1:]]
        resized = tv.resize(pixels, sides, interpolation=InterpolationMode.BICUBIC, antialias=True)
        total += F.normalize(encoder(normalise(resized)[None]).class_token.cpu(), dim=1)
    return F.normalize(total, dim=1)


def last_features(
    encoder: LayeredEncoder, images: Float[Tensor, "B 3 H W"], blocks: int, *, mean: bool
) -> Float[Tensor, "B W"]:
    """Normed class tokens of the last blocks, the last block's at the end, and after them the mean patch if asked for.

    Raises:
        ConfigError: The model has fewer blocks.
    """
    if blocks == 1 and not mean:
        return encoder(images).class_token
    layers = encoder.layers(images, range(encoder.depth - blocks, encoder.depth), norm=True)
    parts = [layer.class_token for layer in layers]
    return torch.cat([*parts, layers[-1].patches.mean((2, 3))] if mean else parts, 1)


def _shard(store: Path, number: int) -> Path:
    return store / f"{number:06d}.safetensors"


def _digest(features: Tensor, indices: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (features, indices):
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, features: Tensor, indices: Tensor, owner: dict[str, str], skipped: dict[str, str]) -> None:
    metadata = {**owner, "digest": _digest(features, indices), "skipped": json.dumps(skipped)}
    with atomic_write(path) as partial:
        save_file({"features": features.contiguous(), "index": indices}, partial, metadata)


def _read(store: Path, shards: int, owner: dict[str, str], source: Source) -> Stored:
    features: list[Tensor] = []
    indices: list[Tensor] = []
    skipped: dict[str, str] = {}
    for number in range(shards):
        path = _shard(store, number)
        remedy = "remove it, and it alone is made again"
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                part, index = file.get_tensor("features"), file.get_tensor("index")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is damaged ({error}): {remedy}.") from error
        if metadata["digest"] != _digest(part, index):
            raise DataError(f"{path} is damaged (its digest does not fit): {remedy}.")
        if other := next((name for name, value in owner.items() if metadata[name] != value), None):
            raise DataError(f"{path} holds features of another {other}: {remedy}.")
        features.append(part)
        indices.append(index)
        skipped |= json.loads(metadata["skipped"])
    numbers, values = torch.cat(indices), torch.cat(features)
    if not (numbers[1:] > numbers[:-1]).all():  # shards overlap: an image that two of them hold counts once
        order = {int(number): row for row, number in enumerate(numbers)}
        rows = torch.tensor([order[number] for number in sorted(order)])
        numbers, values = numbers[rows], values[rows]
    labels = None if source.labels is None else torch.tensor(source.labels)[numbers]
    return Stored(values, labels, numbers, skipped)
