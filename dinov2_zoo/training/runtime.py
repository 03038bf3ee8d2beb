"""Where a run runs: processes, device, precision.

accelerate starts the processes and picks the device. It is spoken to here and in launchers.py, sharding.py and
trackers.py, and nowhere else.
"""

import contextlib
import gc
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from dinov2_zoo.config import RuntimeConfig
from dinov2_zoo.data.workers import usable_cores
from dinov2_zoo.errors import Preempted, TrainingError, ZooError
from dinov2_zoo.training.activation_checkpointing import checkpoint_activations
from dinov2_zoo.training.determinism import repeat_exactly
from dinov2_zoo.training.launchers import adopt_srun, check_launcher, flag, processes_started, replicas
from dinov2_zoo.training.precision import choose_precision, widen
from dinov2_zoo.training.sharding import BLOCK, check_same_weights, device_mesh, gather_state_dict, shard
from dinov2_zoo.training.trackers import Trackers, check_trackers

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class Runtime:
    """Where a run runs: one process or many, CPU or GPU, fp32 or bf16. Make it first, before any model.

    It seeds torch's global generator with `config.seed`, so that every process draws the same first weights.
    Use it as a context manager, or call `shutdown` at the end.

    Args:
        config: Devices, precision, threads, seed.
        trackers: Names of trackers that accelerate knows, such as "tensorboard".
        run_dir: Folder that trackers write to.

    Raises:
        ConfigError: A tracker, the launcher's precision or its FSDP settings cannot be had.
        TrainingError: The launcher started several processes, but each believes that it is alone.
    """

    device: torch.device
    rank: int
    world_size: int
    replicas: int
    """Whole copies of each branch among the processes: 1, or more with hybrid sharding."""
    cores: int
    """CPU cores that this process may use."""
    precision: Literal["bf16", "fp32"]

    def __init__(self, config: RuntimeConfig, *, trackers: Sequence[str] = (), run_dir: Path | str | None = None):
        self.config = config
        check_trackers(trackers)
        adopt_srun()
        check_launcher(config)
        if config.deterministic:
            repeat_exactly()
        # cpu=True also cures a trap: launched with an FSDP or multi-GPU file on a machine without GPU, accelerate
        # would give each process world size 1, that is, as many independent trainings as processes.
        cpu = config.cpu or not torch.cuda.is_available() or flag("ACCELERATE_USE_CPU")
        with _without_parallelism():
            self._accelerator = Accelerator(
                cpu=cpu,
                mixed_precision="no",  # autocast and sharding policies are ours, see `autocast` and `shard`
                log_with=list(trackers) or None,
                project_dir=str(run_dir) if run_dir is not None else None,
            )
        # accelerate says "cpu:0", which torch's device meshes do not take for the CPU.
        self.device = torch.device("cpu") if cpu else self._accelerator.device
        self.rank = self._accelerator.process_index
        self.world_size = self._accelerator.num_processes
        launched = processes_started()
        if launched != self.world_size:
            self.shutdown()
            raise TrainingError(
                f"{launched} processes were launched, but each of them is on its own (world size {self.world_size}): "
                "launch with `accelerate launch --config_file recipes/configs/accelerate/ddp.yaml`, torchrun or srun."
            )
        self.replicas = replicas(self.world_size)
        self._fsdp = FullyShardedDataParallelPlugin() if flag("ACCELERATE_USE_FSDP") else None
        self.precision = choose_precision(config.precision, self.device)
        # As torch has it, convolutions (patch embeddings are some) would take TF32 where fp32 was asked for.
        torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
        self.cores = max(1, usable_cores() // self._local_processes())
        self.threads = config.threads or self.cores
        # `accelerate launch` sets OMP_NUM_THREADS=1, which would leave all cores but one idle.
        torch.set_num_threads(self.threads)
        torch.manual_seed(config.seed)
        self.trackers = Trackers(self._accelerator)
        # Where people look: stderr of the main process. One console for all, or bars would overwrite each other.
        self.console = Console(stderr=True, quiet=not self.is_main)
        self._closed = False

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error the other processes may be gone: waiting for them in `shutdown` would hang.
        if kind is None or issubclass(kind, Preempted):
            self.shutdown()

    @property
    def is_main(self) -> bool:
        """True on the one process that prints and writes shared files."""
        return self.rank == 0

    def _local_processes(self) -> int:
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.world_size > 1 else 1

    # ---------------------------------------------------------------- models

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which matrix products run in bf16, or nothing at fp32 (float64 weights then stay float64)."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def place(self, module: M) -> M:
        """Move a module to the device, its weights in fp32 (or float64) however they were stored; in place.

        For whatever runs before `shard`, such as first weights and a first measurement.
        """
        widen(module)
        return module.to(self.device)

    def shard(self, module: M) -> M:
        """Make a module ready to train: place it, and shard it over the processes (`sharding.shard`); in place.

        Where the configuration asks for it, the student's activations are checkpointed and blocks compiled. Copies (the
        EMA) must be made before, optimizers after. A teacher that several modules share is sharded with the first.

        Args:
            module: With a child `student`, and perhaps `ema` and `teacher`.

        Raises:
            ConfigError: The student has no activation checkpointing.
            TrainingError: The processes hold different weights.
        """
        self.place(module)
        if self.config.activation_checkpointing:
            checkpoint_activations(module.get_submodule("student"))
        if self.world_size > 1:
            check_same_weights(module, self.device)
            shard(module, self.mesh(), self._fsdp, half=self.half_blocks)
        if self.config.compile:
            for block in module.modules():
                if BLOCK in {c.__name__ for c in type(block).__mro__}:
                    block.compile()
        return module

    @property
    def half_blocks(self) -> bool:
        """Whether sharded blocks travel and compute in bf16: on CUDA; elsewhere autocast decides."""
        return self.precision == "bf16" and self.device.type == "cuda"

    def mesh(self) -> DeviceMesh:
        """The processes as `shard` divides a branch among them."""
        return device_mesh(self.device, self.world_size, self.replicas)

    def full_state_dict(self, branch: nn.Module) -> dict[str, Tensor]:
        """All weights of a branch as whole CPU tensors, for export. Every process must call it; only rank 0 gets them.

        Returns:
            Parameters and buffers by name on rank 0, an empty dict elsewhere.
        """
        state = gather_state_dict(branch)
        return {name: tensor.detach().clone() for name, tensor in state.items()} if self.is_main else {}

    # ---------------------------------------------------------------- processes

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            self._accelerator.wait_for_everyone()

    def any_true(self, flag: bool) -> bool:
        """True on every process if `flag` is true on any."""
        if self.world_size == 1:
            return flag
        shared = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared.item())

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over processes, in place where there are several."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean over processes of scalars on the device: one reduction and one transfer to the host."""
        if not values:
            return {}
        stacked = self.sum(torch.stack([v.detach().double() for v in values.values()])) / self.world_size
        return dict(zip(values, stacked.tolist(), strict=True))

    def gather(self, value: T) -> list[T]:
        """A picklable object from every process, in rank order, on every process."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, value: T) -> T:
        """Rank 0's picklable object, on every process."""
        if self.world_size == 1:
            return value
        shared: list[Any] = [value]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]

    @contextlib.contextmanager
    def main_first(self) -> Generator[None, None, None]:
        """Let rank 0 run the block before the others: for downloads and unpacking into a shared cache."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    @contextlib.contextmanager
    def together(self) -> Generator[None, None, None]:
        """Raise on every process the user's error that the block raised on one of them, so that none waits for it."""
        error: ZooError | None = None
        try:
            yield
        except ZooError as problem:
            error = problem
        for found in self.gather(error):
            if found is not None:
                raise found

    # ---------------------------------------------------------------- the end

    def shutdown(self) -> None:
        """End the run: close trackers, leave the process group. Let go of models and batches before."""
        if getattr(self, "_closed", False):
            return
        self._closed = True
        # Two-process CPU runs that had gathered weights died at exit in one of eight cases (gloo's threads still held
        # finished work); waiting, then freeing tensors before the group is left, brought that to 0 of 32.
        self._accelerator.wait_for_everyone()
        self._accelerator.free_memory()
        gc.collect()
        with contextlib.suppress(Exception):  # a tracker that cannot be reached must not fail a finished run
            self._accelerator.end_training()
        # accelerate keeps its state for the whole Python process; another Runtime would get a group that is gone.
        AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage]


@contextlib.contextmanager
def _without_parallelism() -> Generator[None, None, None]:
    """Hide accelerate's parallelism settings from accelerate, which would make a mesh of its own of them."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PARALLELISM_CONFIG_")}
    asked = os.environ.pop("ACCELERATE_USE_PARALLELISM_CONFIG", None)
    try:
        yield
    finally:
        os.environ.update(hidden | ({"ACCELERATE_USE_PARALLELISM_CONFIG": asked} if asked else {}))
