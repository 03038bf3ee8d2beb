"""The electric power that a run is assumed to draw: an estimate for model cards, for nobody holds a meter to it."""

import os
import subprocess
from dataclasses import dataclass

import torch

CORE_WATTS = 10.0
"""A server's core with its share of memory and fans (chosen here: 64 to 96 cores in 280 to 400 W, doubled)."""


@dataclass(frozen=True)
class Power:
    """Assumed power."""

    watts: float
    """Power of all processors of the run together."""
    how: str
    """What it is made of."""


def assumed_power() -> Power:
    """GPUs at their power limit, as the driver tells it; without GPUs this machine's cores at `CORE_WATTS` each."""
    if torch.cuda.is_available() and (limit := _gpu_limit()):
        gpus = int(os.environ.get("WORLD_SIZE", "1"))
        return Power(gpus * limit, f"{gpus} GPUs at their limit of {limit:g} W")
    cores = os.cpu_count() or 1
    return Power(cores * CORE_WATTS, f"{cores} cores, {CORE_WATTS:g} W assumed for each")


def _gpu_limit() -> float | None:
    """Watts of one of this machine's GPUs."""
    ask = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout.split()
        return float(found[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
