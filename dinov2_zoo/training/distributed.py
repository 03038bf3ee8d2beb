"""The processes that an evaluation is shared among, as its protocols see them."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class DistributedContext(Protocol):
    """What `training.runtime.Runtime` offers of itself here; every process makes the same calls in the same order."""

    device: torch.device
    rank: int
    world_size: int

    @property
    def is_main(self) -> bool:
        """True on the one process that prints and writes shared files."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """Precision of the forward passes."""
        ...

    def barrier(self) -> None:
        """Wait until every process is here."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over processes, in place where there are several."""
        ...

    def gather(self, value: T) -> list[T]:
        """A picklable object from every process, in rank order, on every process."""
        ...


class SingleProcess:
    """One process.

    Args:
        device: Where the evaluation computes.
    """

    rank, world_size, is_main = 0, 1, True

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def autocast(self) -> AbstractContextManager[Any]:
        """fp32."""
        return nullcontext()

    def barrier(self) -> None:
        """Nobody to wait for."""

    def sum(self, values: Tensor) -> Tensor:
        """The tensor."""
        return values

    def gather(self, value: T) -> list[T]:
        """The value."""
        return [value]


def average_gradients(head: nn.Module, processes: DistributedContext) -> None:
    """Replace each gradient by its mean over processes: they then take the same step."""
    if processes.world_size > 1:
        for parameter in head.parameters():
            if parameter.grad is not None:
                processes.sum(parameter.grad).div_(processes.world_size)
