"""bf16 where the hardware computes in it, else fp32."""

import os
from typing import Literal

import torch


def choose_precision(asked: Literal["auto", "bf16", "fp32"], device: torch.device) -> Literal["bf16", "fp32"]:
    """Settle precision: a setting wins, then `accelerate launch --mixed_precision bf16`, then what the device has."""
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked != "auto":
        return asked
    return "bf16" if launcher == "bf16" or _has_bf16(device) else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for this. Without these instructions bf16 on CPU is emulated, slower than fp32.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    probes = [getattr(torch.cpu, name, None) for name in names]
    return any(probe() for probe in probes if probe is not None)
