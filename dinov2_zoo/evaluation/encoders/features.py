"""Class features of every image of a source, once, for k-NN and whatever else needs only those."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.batch import Skipped
from dinov2_zoo.data.preprocess import eval_image
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.encoders.encoder import Encoder
from dinov2_zoo.evaluation.encoders.reading import ReadImages, cut, read_ahead

WORKERS = 4
"""Decoding processes (chosen here, as for training)."""


@dataclass(frozen=True)
class Features:
    """Class features of the images of a source that could be decoded, in the source's order, on the CPU."""

    features: Float[Tensor, "n D"]
    indices: list[int]
    """Numbers of the images in the source."""
    labels: Int64[Tensor, " n"] | None
    """Labels of the same images; None for a source without labels."""
    skipped: list[Skipped]
    """Images left out, with the reason."""


@dataclass(frozen=True)
class CentreCrop:
    """Prepares an image as evaluation does: short side to size * 256/224, centre crop, normalised."""

    size: int
    """Side of the result, pixels."""

    def __call__(self, image: Image.Image, index: int, randomness: torch.Generator) -> Float[Tensor, "3 S S"]:
        """The prepared image."""
        return eval_image(image, self.size)


def class_features(
    encoder: Encoder,
    source: Source,
    *,
    size: int = 224,
    batch_size: int = 64,
    indices: Sequence[int] | None = None,
    workers: int = WORKERS,
) -> Features:
    """Encode a source's images, prepared as for evaluation, and keep their class tokens.

    An image that cannot be decoded is left out and reported.

    Args:
        encoder: The model.
        source: Images.
        size: Side of the prepared image, pixels.
        batch_size: Images per forward pass.
        indices: Which images, in which order; default all.
        workers: Decoding processes.

    Raises:
        DataError: Not one image could be decoded.
    """
    part = range(len(source)) if indices is None else indices
    read = ReadImages(source, CentreCrop(size))
    return next(part_features(lambda images: encoder(images).class_token, read, [part], batch_size, workers))


def part_features(
    take: Callable[[Tensor], Tensor],
    read: ReadImages,
    parts: Sequence[Sequence[int]],
    batch_size: int,
    workers: int,
) -> Iterator[Features]:
    """Features of several parts of a source, one part after the other; no batch is of two parts.

    Args:
        take: From a batch of prepared images to what is kept of them, [B, D].
        read: Reads and prepares images.
        parts: Numbers of the images of each part.
        batch_size: Images per forward pass.
        workers: Decoding processes, the same for all parts.

    Raises:
        DataError: Not one image of a part could be decoded.
    """
    cuts = [cut(part, batch_size, workers) for part in parts]
    batches = read_ahead(read, [batch for part in cuts for batch in part], workers)
    labels = read.source.labels
    for part, batches_of_part in zip(parts, cuts, strict=True):
        outputs: list[Tensor] = []
        kept: list[int] = []
        skipped: list[Skipped] = []
        for _ in batches_of_part:
            batch = next(batches)
            if batch.indices:
                outputs.append(take(batch.images).cpu())
            kept += batch.indices
            skipped += batch.skipped
        if not outputs:
            raise DataError(f"None of {len(part)} images could be decoded: check the path of the evaluated images.")
        found = None if labels is None else torch.tensor([labels[i] for i in kept])
        yield Features(torch.cat(outputs), kept, found, skipped)
