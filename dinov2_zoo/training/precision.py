"""Products in bf16 where the hardware computes in it, else in fp32; weights in fp32 wherever they come from."""

import itertools
import os
from typing import Literal

import torch
from torch import nn


def choose_precision(asked: Literal["auto", "bf16", "fp32"], device: torch.device) -> Literal["bf16", "fp32"]:
    """Settle precision: a setting wins, then `accelerate launch --mixed_precision bf16`, then what the device has."""
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked != "auto":
        return asked
    return "bf16" if launcher == "bf16" or _has_bf16(device) else "fp32"


def widen(module: nn.Module) -> None:
    """Turn weights and buffers that were stored in half precision into fp32, in place; float64 stays.

    What learns must be fp32: at a learning rate of 1e-4 most updates are smaller than half the distance between two
    neighbouring bf16 numbers, so that nothing would move, and the average would stand still. The frozen teacher is
    widened too: a sharded branch has one precision, without autocast half-precision weights take no fp32 images, and so
    the run's numbers do not depend on how weights were stored. Products run in bf16 all the same where autocast is on.
    """
    with torch.no_grad():
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for this. Without these instructions bf16 on CPU is emulated, slower than fp32.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    probes = [getattr(torch.cpu, name, None) for name in names]
    return any(probe() for probe in probes if probe is not None)
