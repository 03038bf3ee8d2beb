"""The released model: an exponential moving average of the student, updated shard by shard without communication."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def local_shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The part of each tensor that this process holds: itself where it is not sharded, perhaps empty where it is."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


@torch.no_grad()
def update_ema(ema: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move `ema` towards `student`: ema = momentum * ema + (1 - momentum) * student, and copy buffers.

    Args:
        ema: Copy of the student, sharded like it.
        student: The module that learns.
        momentum: 0 (copy) to 1 (stand still).
    """
    # A sharded module that was evaluated may still hold gathered weights: updating its shards would not reach them.
    for module in ema.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    averages, latest = local_shards(ema.parameters()), local_shards(student.parameters())
    if averages:
        # One kernel for all of them; torch's own optimizers are built on it, though its name has an underscore.
        torch._foreach_lerp_(averages, latest, 1 - momentum)  # pyright: ignore[reportPrivateUsage]
    # Running statistics of a batch-normalised student average themselves.
    for mine, theirs in zip(ema.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)
