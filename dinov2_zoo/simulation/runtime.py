"""A Runtime whose other processes are not there: collectives are counted, and their results have the right size."""

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from dinov2_zoo.config import RuntimeConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.simulation.watch import Watch
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.sharding import BLOCK, device_mesh

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Processes:
    """The processes of a run, a GPU each."""

    count: int = 1
    """Over all machines."""
    reshard: bool = False
    """Gathered weights are freed between forward and backward (`accelerate/fsdp.yaml`)."""
    copies: int = 1
    """Whole copies of each branch among them: above 1 with hybrid sharding (`accelerate/hsdp.yaml`)."""
    on_gpus: bool = True
    """Take a GPU's decisions (bf16, sharded blocks in bf16); off: those of the CPU, to compare with it."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.copies < 1 or self.count % self.copies:
            raise ConfigError(
                f"{self.copies} copies do not divide {self.count} GPUs: let --copies be a divisor of --gpus."
            )


class SimulatedRuntime(Runtime):
    """The first of some processes; make it within `process_group`, outside of any fake mode.

    Args:
        config: Devices are not looked at; precision "auto" is bf16, as on every GPU that trains.
        processes: As many as are pretended.
        watch: Is told what collectives of numbers give: 0, so that a step is finite and nobody asks to stop.
    """

    def __init__(self, config: RuntimeConfig, processes: Processes, watch: Watch) -> None:
        self.config, self.processes, self.watch = config, processes, watch
        self.device = torch.device("cpu")
        self.rank, self.world_size, self.replicas = 0, processes.count, processes.copies
        self.cores = self.threads = 1
        self.precision = ("bf16" if processes.on_gpus else "fp32") if config.precision == "auto" else config.precision
        self.console = Console(quiet=True)
        plugin = SimpleNamespace(reshard_after_forward=processes.reshard, transformer_cls_names_to_wrap=[BLOCK])
        self._fsdp: Any = plugin
        self._closed = True  # there is nothing to shut down
        self._mesh = device_mesh(self.device, self.world_size, self.replicas) if self.world_size > 1 else None

    @property
    def half_blocks(self) -> bool:
        """As on CUDA."""
        return self.precision == "bf16" and self.processes.on_gpus

    def place(self, module: M) -> M:
        """Modules are built on the device, in fp32."""
        return module

    def mesh(self) -> DeviceMesh:
        """Made beforehand, for it computes with numbers."""
        assert self._mesh is not None
        return self._mesh

    def barrier(self) -> None:
        """Nobody to wait for."""

    def any_true(self, flag: bool) -> bool:
        """What this process says."""
        return flag

    def sum(self, values: Tensor) -> Tensor:
        """A reduction, if there are several processes; all zero."""
        super().sum(values)
        return self.watch.tell_zeros(values.clone())

    def gather(self, value: T) -> list[T]:
        """The same from everyone."""
        return [value] * self.world_size

    def broadcast(self, value: T) -> T:
        """The first process is this one."""
        return value


@contextlib.contextmanager
def process_group(processes: Processes) -> Generator[None, None, None]:
    """A group in which this process is the first and the others are never heard of.

    Raises:
        ConfigError: This process is one of several already.
    """
    if processes.count == 1:
        yield
        return
    if dist.is_initialized():
        raise ConfigError("A plan pretends its processes: run it by itself, without a launcher.")
    dist.init_process_group("fake", rank=0, world_size=processes.count, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
