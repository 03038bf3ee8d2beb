"""Features of any number of photos, whatever they come as; what cannot be read is left out and named."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from dinov2_zoo.data.batch import Skipped
from dinov2_zoo.data.decode import DecodeError
from dinov2_zoo.data.formats import name_left_out
from dinov2_zoo.data.inputs import Images, Input, Inputs
from dinov2_zoo.data.preprocess import eval_image
from dinov2_zoo.data.read_ahead import read_ahead
from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.progress import progress as shown_progress


@dataclass(frozen=True)
class Embeddings:
    """Features of the photos that could be read, and which these are."""

    features: Float[Tensor, "n D"]
    """Class tokens, fp32, on the CPU, not scaled to unit length."""
    names: list[str]
    """Path, address, row or number ("image 3") of the photo of each row."""
    indices: list[int]
    """Its place among all photos that were given, counted from 0, the skipped ones included."""
    skipped: list[Skipped]
    """Photos that could not be read, with the reason."""
    left_out: dict[str, int]
    """Files beside the photos that are not read, by kind, as in {"HEIC": 5, "other": 2}."""

    def __len__(self) -> int:
        return len(self.names)

    def trouble(self, show: int = 5) -> str:
        """What was left out and why, in a few lines; "" if nothing that matters was.

        Args:
            show: Skipped photos to name.
        """
        lines: list[str] = []
        if self.skipped:
            lines.append(f"{len(self.skipped):,} of {len(self.skipped) + len(self):,} photos could not be read:")
            lines += [f"  {photo.name}: {photo.reason}" for photo in self.skipped[:show]]
            if len(self.skipped) > show:
                lines.append(f"  and {len(self.skipped) - show:,} more")
        # Videos and texts in a folder of photos are usual, and nothing to warn about.
        if words := name_left_out({kind: count for kind, count in self.left_out.items() if kind != "other"}):
            lines.append(f"{words}.")
        return "\n".join(lines)


def embed_images(
    encode: Callable[[Float[Tensor, "B 3 S S"]], Float[Tensor, "B D"]],
    images: Images,
    *,
    size: int,
    batch_size: int = 32,
    workers: int = 4,
    progress: bool | None = None,
) -> Embeddings:
    """Prepare photos in threads, encode them batch by batch, and keep account of what could not be read.

    Args:
        encode: From prepared photos, fp32 on the CPU, to their features.
        images: See `Dinov2Model.embed`.
        size: Side to which they are prepared, pixels.
        batch_size: Photos at a time.
        workers: Threads that read and decode.
        progress: Say how far it is, once it has taken 5 s; None: on a terminal only.

    Raises:
        ConfigError: `batch_size` or `workers` is below 1.
        DataError: There are no images, something given is none, or not one of them can be read.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"{name} {value} reads no photo: use 1 or more.")
    inputs = Inputs(images)
    names: list[str] = []
    indices: list[int] = []
    skipped: list[Skipped] = []
    features: list[Tensor] = []
    seen = 0

    def prepare(photo: Input) -> Tensor | DecodeError:
        try:
            return eval_image(photo.image(), size)
        except DecodeError as error:
            return error

    with _progress(progress, inputs.total) as advance:
        for batch in read_ahead(inputs, prepare, batch_size=batch_size, workers=workers):
            prepared: list[Tensor] = []
            for photo, made in batch:
                if isinstance(made, DecodeError):
                    skipped.append(Skipped(seen, photo.name, str(made)))
                else:
                    prepared.append(made)
                    names.append(photo.name)
                    indices.append(seen)
                seen += 1
                advance()
            if prepared:
                features.append(encode(torch.stack(prepared)).float().cpu())
    if not seen:
        raise DataError("There are no images: give at least one.")
    if not features:
        first = f"{skipped[0].name}: {skipped[0].reason}"
        raise DataError(first if seen == 1 else f"None of {seen:,} photos can be read; the first is {first}")
    return Embeddings(torch.cat(features), names, indices, skipped, dict(inputs.left_out))


def prepare_images(images: Images, size: int) -> Float[Tensor, "B 3 S S"]:
    """Photos as the model expects them, fp32 on the CPU; all of them or an error.

    Raises:
        DataError: A photo cannot be read; names it.
    """
    batch: list[Tensor] = []
    for photo in Inputs(images):
        try:
            batch.append(eval_image(photo.image(), size))
        except DecodeError as error:
            raise DataError(f"{photo.name}: {error}") from error
    if not batch:
        raise DataError("There are no images: give at least one.")
    return torch.stack(batch)


def _progress(progress: bool | None, total: int | None) -> AbstractContextManager[Callable[[], None]]:
    """Gives what to call after each photo."""
    console = Console(stderr=True)
    if console.is_terminal if progress is None else progress:
        return shown_progress("Embedding", total, console=console)
    return nullcontext(lambda: None)
