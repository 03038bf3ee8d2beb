"""One optimizer step of a run, as its recipe takes it, on fake tensors."""

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from dinov2_zoo.config import DistillConfig, PretrainConfig
from dinov2_zoo.config.auto import is_auto
from dinov2_zoo.config.settle import Hardware, settle_data
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.simulation.batch import PATCH, as_fake, micro_batch
from dinov2_zoo.simulation.ledger import Ledger
from dinov2_zoo.simulation.networks import build, shapes_of
from dinov2_zoo.simulation.runtime import Processes, SimulatedRuntime, process_group
from dinov2_zoo.simulation.watch import Collective, Watch, Work
from dinov2_zoo.training.ema import local_shards
from dinov2_zoo.training.lane import Lane
from dinov2_zoo.training.log import RunLog
from dinov2_zoo.training.loop import train
from dinov2_zoo.training.preconditioning import measure_coordinates
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TEACHERS, TrainState

MANY = 10**9
"""Images in the source, and steps of the log: more than are asked for."""
STEPS = 1000
"""Of a run whose length is not settled; no step costs more than another."""


@dataclass(frozen=True)
class Step:
    """What one process does in a step."""

    config: PretrainConfig | DistillConfig
    """Settled."""
    processes: Processes
    peak: int
    """Bytes."""
    at_peak: dict[str, int]
    """Bytes of each kind of tensor at the peak."""
    where: str
    """What ran at the peak."""
    held: dict[str, int]
    """Bytes of each kind that stay from step to step."""
    works: Sequence[Work]
    collectives: Sequence[Collective]

    @property
    def images(self) -> int:
        """That a process sees at once."""
        return self.config.loader.batch_size // self.processes.count // self.config.optim.accumulate

    @property
    def flops(self) -> int:
        """Of matrix products and attention."""
        return sum(work.flops for work in self.works)


def settled(config: PretrainConfig | DistillConfig, processes: Processes) -> PretrainConfig | DistillConfig:
    """What follows from the number of GPUs, with images enough; a finishing stage at its largest size.

    Raises:
        ConfigError: The batch does not divide.
    """
    config = settle_data(config, MANY, apart=True, hardware=Hardware("cuda", processes.count, 16))
    if isinstance(config, DistillConfig) and config.finish.share:
        side = max(config.finish.sides(config.crops.global_size, PATCH))
        config = replace(config, crops=replace(config.crops, global_size=side))
    return replace(config, optim=config.optim.settled(STEPS if is_auto(config.optim.steps) else None))


def simulate(config: PretrainConfig | DistillConfig, processes: Processes) -> Step:
    """Simulate a run's last step.

    Args:
        config: As a recipe takes it.
        processes: Of the run.

    Raises:
        ConfigError: The batch does not divide, or the run has what is not planned (`shapes_of`).
    """
    config, shape = shapes_of(settled(config, processes))
    ledger, mode = Ledger(), FakeTensorMode(allow_non_fake_inputs=True)
    watch = Watch(ledger)
    with process_group(processes), warnings.catch_warnings():
        # torch looks whether a tensor is there at all, and FSDP remarks on every branch that its output is a view.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor|FSDP2-wrapped module")
        runtime = SimulatedRuntime(config.runtime, processes, watch)
        with mode:
            modules = build(config, shape)
        real = micro_batch(config, modules[0], processes=processes.count)
        with ledger.following_resizes(), mode, watch:
            batch, inputs = as_fake(real, mode)
            lanes = [
                make_ready(one, module, runtime, batch) for one, module in zip(config.each(), modules, strict=True)
            ]
            for lane in lanes:
                first_update(lane.state)
                _name_what_stays(lane.state, ledger)
            ledger.call(inputs, "batch")
            held = ledger.held()
            ledger.forget_peak()
            watch.forget()
            with _phases(watch, lanes):
                train(runtime, lanes, [batch] * config.optim.accumulate)
    return Step(config, processes, ledger.peak, ledger.at_peak(), ledger.where, held, watch.works, watch.collectives)


def make_ready(config: PretrainConfig | DistillConfig, module: nn.Module, runtime: Runtime, batch: Batch) -> Lane:
    """A run at its last step, made ready as recipes do it.

    Args:
        config: Settled, of one run.
        module: From `networks.build`.
        runtime: Simulated, or a real one to compare with.
        batch: Of that step.
    """
    module = runtime.place(module)
    coordinates = None
    if isinstance(config, DistillConfig) and config.preconditions:
        student = module.get_submodule("student")
        coordinates = measure_coordinates(student, [batch], device=runtime.device, autocast=runtime.autocast)
    global_batch = config.loader.batch_size
    state = TrainState.start(runtime.shard(module), config.optim, global_batch=global_batch, coordinates=coordinates)
    state.step = state.config.steps - 1
    log = RunLog(None, replace(config.log, every=MANY, progress=False), steps=MANY, console=runtime.console)
    return Lane(state, log)


def first_update(state: TrainState) -> None:
    """An update by gradients of zero, in which the optimizer makes its moments."""
    for parameter in state.student.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    state.set_rates()
    state.update()
    state.optimizer.zero_grad(set_to_none=True)


def _name_what_stays(state: TrainState, ledger: Ledger) -> None:
    """Tell the ledger which tensors are there from step to step."""
    ledger.call_temporaries("optimizer")
    ledger.call(state.module.buffers(), "weights")
    ledger.call(local_shards(state.student.parameters()), "weights")
    ledger.call(local_shards(state.ema.parameters()), "average")
    frozen = [p for name, p in state.module.named_parameters() if name.startswith(TEACHERS)]
    ledger.call(local_shards(frozen), "teacher")


PHASES = {"student": "student", "ema": "average", "teacher": "teacher", "further": "teacher", "objective": "losses"}


@contextmanager
def _phases(watch: Watch, lanes: Sequence[Lane]) -> Generator[None, None, None]:
    """Tell the watch what runs: which branch, which module of it, the optimizer, the average."""
    names: dict[int, tuple[str, str]] = {}
    for lane in lanes:
        for name, module in lane.state.module.named_modules():
            top, _, rest = name.partition(".")
            if top in PHASES:
                names[id(module)] = PHASES[top], rest

    def before(module: nn.Module, _: Any) -> None:
        if found := names.get(id(module)):
            watch.enter(*found)

    def after(module: nn.Module, _: Any, output: Any) -> None:
        found = names.get(id(module))
        if found and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda _, name=found[1]: watch.enter("backward", name))
        if found and not found[1]:
            watch.enter("losses")

    hooks = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
    for lane in lanes:
        optimizer = lane.state.optimizer
        hooks.append(optimizer.register_step_pre_hook(lambda *_: watch.enter("update")))
        hooks.append(optimizer.register_step_post_hook(lambda *_: watch.enter("average update")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
