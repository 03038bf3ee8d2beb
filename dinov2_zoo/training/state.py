"""What a training run is at one moment: everything a checkpoint must hold to continue it."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dinov2_zoo.config import OptimConfig
from dinov2_zoo.training.guard import Guard
from dinov2_zoo.training.parameter_groups import parameter_groups
from dinov2_zoo.training.preconditioning import Coordinates, Preconditioner
from dinov2_zoo.training.schedules import Schedules

TEACHERS = ("teacher.", "further.")
"""Children of a module that are frozen: its teacher, and others beside it (`objectives.several_teachers`)."""


@dataclass
class TrainState:
    """A module that maps a batch to loss terms, its optimizer, and the number of finished steps.

    `module` has children `student` (what learns) and `ema` (its average, what is released); it may have `teacher` and
    `further` ones, which are frozen and therefore no part of the state. Schedules are functions of the step and data of
    the seed and step, so nothing of them needs saving.
    """

    module: nn.Module
    optimizer: Optimizer
    config: OptimConfig
    schedules: Schedules
    step: int = 0
    bad_steps: int = 0
    """Steps left out so far because something was not finite."""
    preconditioner: Preconditioner | None = None
    """In which coordinates the optimizer steps; None: the network's own."""
    guard: Guard | None = None
    """What keeps the average from becoming worse than its start; None: nothing."""

    @staticmethod
    def start(
        module: nn.Module, config: OptimConfig, *, global_batch: int, coordinates: Coordinates | None = None
    ) -> "TrainState":
        """State before the first step.

        Args:
            module: On its device and sharded (`Runtime.shard`).
            config: Optimizer settings.
            global_batch: Images per optimizer step over all processes and micro-batches.
            coordinates: In which the optimizer steps, measured before sharding; then nothing decays. None: the
                network's own.
        """
        config = config.settled()
        student = module.get_submodule("student")
        groups = parameter_groups(student, config)
        if coordinates:
            for group in groups:
                group["wd_multiplier"] = 0.0
        # lr and weight decay are set by the schedules before every step.
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, foreach=True)
        preconditioner = Preconditioner(student, coordinates) if coordinates else None
        return TrainState(module, optimizer, config, Schedules.of(config, global_batch), preconditioner=preconditioner)

    def set_rates(self) -> None:
        """Give the optimizer this step's learning rate and weight decay."""
        self.schedules.apply(self.optimizer, self.step, share=self.guard.rate if self.guard else 1.0)

    def update(self) -> None:
        """The optimizer's step, from gradients that are clipped already."""
        with self.preconditioner.around_step() if self.preconditioner else nullcontext():
            self.optimizer.step()

    @property
    def student(self) -> nn.Module:
        """The branch that learns."""
        return self.module.get_submodule("student")

    @property
    def ema(self) -> nn.Module:
        """The student's moving average."""
        return self.module.get_submodule("ema")

    def tensors(self) -> dict[str, Tensor]:
        """Live weights and buffers to be saved, by name: all of the module but its frozen teachers.

        Buffers that hold the objective's running statistics are among them. Loading into these tensors in place
        loads the state.
        """
        everything = {n: tensor for n, tensor in self.module.state_dict().items() if not n.startswith(TEACHERS)}
        kept = self.guard.tensors() if self.guard else {}
        return everything | {f"guard.{name}": tensor for name, tensor in kept.items()}

    def statistics(self) -> list[Tensor]:
        """Buffers that a forward pass may move: all but the teachers' and the average's."""
        fixed = (*TEACHERS, "ema.")
        return [buffer for name, buffer in self.module.named_buffers() if not name.startswith(fixed)]
