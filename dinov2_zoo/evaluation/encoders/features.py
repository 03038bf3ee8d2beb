"""Class features of every image of a source, once, for k-NN and whatever else needs only those."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from dinov2_zoo.data.batch import Skipped
from dinov2_zoo.data.decode import DecodeError, decode
from dinov2_zoo.data.preprocess import eval_image
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.encoders.encoder import Encoder


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


def class_features(
    encoder: Encoder,
    source: Source,
    *,
    size: int = 224,
    batch_size: int = 64,
    indices: Sequence[int] | None = None,
    workers: int = 4,
    take: Callable[[Tensor], Tensor] | None = None,
    prepare: Callable[[Image.Image, int], Tensor] | None = None,
) -> Features:
    """Encode a source's images and keep their class tokens.

    Images are prepared as for evaluation (short side to size * 256/224, centre crop); the next batch is decoded in
    threads while the encoder works on this one. An image that cannot be decoded is left out and reported.

    Args:
        encoder: The model.
        source: Images.
        size: Side of the prepared image, pixels.
        batch_size: Images per forward pass.
        indices: Which images, in which order; default all.
        workers: Decoding threads.
        take: What is kept of a batch of prepared images instead of its class tokens, [B, D].
        prepare: From an image and its number to a tensor, instead of [3, size, size]; a batch must have one size.

    Raises:
        DataError: Not one image could be decoded.
    """
    indices = range(len(source)) if indices is None else indices
    take = take or (lambda images: encoder(images).class_token)
    kept: list[int] = []
    skipped: list[Skipped] = []
    outputs: list[Tensor] = []
    prepare = prepare or (lambda image, _: eval_image(image, size))
    for numbers, results in _prepared(source, indices, prepare, batch_size, workers):
        images: list[Tensor] = []
        for number, result in zip(numbers, results, strict=True):
            if isinstance(result, DecodeError):
                skipped.append(Skipped(number, source.name(number), str(result)))
            else:
                images.append(result)
                kept.append(number)
        if images:
            outputs.append(take(torch.stack(images)).cpu())
    if not outputs:
        raise DataError(f"None of {len(indices)} images could be decoded: check the path of the evaluated images.")
    labels = None if source.labels is None else torch.tensor([source.labels[i] for i in kept])
    return Features(torch.cat(outputs), kept, labels, skipped)


def _prepared(
    source: Source,
    indices: Sequence[int],
    prepare: Callable[[Image.Image, int], Tensor],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[Sequence[int], list[Tensor | DecodeError]]]:
    """Batches of (image numbers, prepared image or what was wrong with it), one batch ahead of the consumer."""

    def prepared(index: int) -> Tensor | DecodeError:
        try:
            return prepare(decode(source.read(index)), index)
        except DecodeError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        ahead = pool.map(prepared, batches[0]) if batches else iter(())
        for number, batch in enumerate(batches):
            results, ahead = ahead, iter(())
            if number + 1 < len(batches):
                ahead = pool.map(prepared, batches[number + 1])
            yield batch, list(results)
