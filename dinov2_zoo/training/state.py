"""What a training run is at one moment: everything a checkpoint must hold to continue it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dinov2_zoo.config import OptimConfig
from dinov2_zoo.training.parameter_groups import parameter_groups
from dinov2_zoo.training.schedules import Schedules


@dataclass
class TrainState:
    """A module that maps a batch to loss terms, its optimizer, and the number of finished steps.

    `module` has children `student` (what learns) and `ema` (its average, what is released); it may have `teacher`,
    which is frozen and therefore no part of the state. Schedules are functions of the step and data of the seed
    and step, so nothing of them needs saving.
    """

    module: nn.Module
    optimizer: Optimizer
    config: OptimConfig
    schedules: Schedules
    step: int = 0
    bad_steps: int = 0
    """Steps left out so far because something was not finite."""

    @staticmethod
    def start(module: nn.Module, config: OptimConfig, *, global_batch: int) -> "TrainState":
        """State before the first step.

        Args:
            module: On its device and sharded (`Runtime.shard`).
            config: Optimizer settings.
            global_batch: Images per optimizer step over all processes and micro-batches.
        """
        config = config.settled()
        groups = parameter_groups(module.get_submodule("student"), config)
        # lr and weight decay are set by the schedules before every step.
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, foreach=True)
        return TrainState(module, optimizer, config, Schedules.of(config, global_batch))

    @property
    def student(self) -> nn.Module:
        """The branch that learns."""
        return self.module.get_submodule("student")

    @property
    def ema(self) -> nn.Module:
        """The student's moving average."""
        return self.module.get_submodule("ema")

    def tensors(self) -> dict[str, Tensor]:
        """Live weights and buffers to be saved, by name: all of the module but its frozen teacher.

        Buffers that hold the objective's running statistics are among them. Loading into these tensors in place
        loads the state.
        """
        everything = self.module.state_dict()
        return {name: tensor for name, tensor in everything.items() if not name.startswith("teacher.")}

    def statistics(self) -> list[Tensor]:
        """Buffers that a forward pass may move: all but the teacher's and the average's."""
        fixed = ("teacher.", "ema.")
        return [buffer for name, buffer in self.module.named_buffers() if not name.startswith(fixed)]
