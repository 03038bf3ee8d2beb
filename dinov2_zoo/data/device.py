"""Batches as training takes them, on its device: moved while the step before is computed, coloured, normalised.

Crops travel as 8-bit integers, a quarter of the bytes, from the workers through shared memory to the device. On a GPU
all this is queued on a stream of its own, one batch ahead of the consumer, so that neither the copy nor the colours are
waited for. On a CPU the same lines run when a batch is asked for.
"""

from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace
from typing import Any, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.colour import ColourPlan
from dinov2_zoo.data.preprocess import normalise, normalise_


class Batches(Iterable[Batch], Sized, Protocol):
    """What can be counted and gone through again."""


class OnDevice:
    """Batches on a device.

    Args:
        batches: As the workers make them, 8-bit; in page-locked memory where they go to a GPU.
        device: Where they are to be.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._batches = batches
        self._device = device

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        if self._device.type == "cuda":
            yield from _one_ahead(self._batches, self._device)
        else:
            for batch in self._batches:
                yield ready(batch.to(self._device))


def _one_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a GPU; when one is given out, the next is already queued on the stream of the copies."""
    copies = torch.cuda.Stream(device)
    waiting: tuple[Batch, Any] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            placed = ready(batch.to(device, non_blocking=True))
            done = copies.record_event()
        if waiting is not None:
            yield _taken(*waiting, device)
        waiting = placed, done
    if waiting is not None:
        yield _taken(*waiting, device)


def _taken(batch: Batch, done: Any, device: torch.device) -> Batch:
    """The batch, which the consumer's stream begins with only when it is there, and whose memory waits for that one."""
    consumer = torch.cuda.current_stream(device)
    consumer.wait_event(done)

    def kept(tensor: Tensor) -> Tensor:
        tensor.record_stream(consumer)
        return tensor

    return batch.map(kept)


def ready(batch: Batch) -> Batch:
    """An 8-bit batch with its colours done and normalised, fp32."""
    groups = [batch.global_crops, batch.local_crops]
    plans = batch.colours or (None,) * len(groups)
    large, small = (_ready(*pair) for pair in zip(groups, plans, strict=True))
    return replace(batch, global_crops=large, local_crops=small, colours=())


def _ready(crops: UInt8[Tensor, "V B 3 S S"], plan: ColourPlan | None) -> Float[Tensor, "V B 3 S S"]:
    if plan is None:
        return normalise(crops)
    levels = crops.flatten(0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    return normalise_(plan(levels)).unflatten(0, crops.shape[:2])
