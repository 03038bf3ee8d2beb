"""One run in the training loop: its state, log and hooks, and its part of a step. Several share batches and teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.errors import TrainingError
from dinov2_zoo.training import gradients
from dinov2_zoo.training.accumulation import CachedStep, couples_images
from dinov2_zoo.training.bad_steps import record_bad_step
from dinov2_zoo.training.ema import update_ema
from dinov2_zoo.training.interval import Interval, peak_memory
from dinov2_zoo.training.log import RunLog
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState

Hook = Callable[[TrainState, Mapping[str, float]], None]
"""Called after every step, on every process, with the state and the line just logged (empty when none was due)."""


@dataclass
class Lane:
    """One run in the loop. Its methods are called in this order, once per step but for `backward`."""

    state: TrainState
    """Module, optimizer, step. The module maps a batch to scalar terms, "loss" the one to minimise, each a mean over
    this process's images."""
    log: RunLog
    """Receives terms (means since its last line), lr, gradient norms, images/s."""
    hooks: Sequence[Hook] = ()
    """Checkpoints, evaluation and whatever else a recipe wants after a step."""
    error: TrainingError | None = None
    """Why this run has ended before the others, its weights those before the step that went wrong."""
    _interval: Interval = field(default_factory=Interval)
    _terms: list[dict[str, Tensor]] = field(default_factory=list)
    """Loss terms of each micro-batch of this step, or of all of them together."""
    _cached: CachedStep | None = None
    """This step's micro-batches so far, where the loss is one of all of them."""
    _statistics: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """What the forward pass itself moves (centres, running statistics), and how it was before this step."""
    _norms: dict[str, Tensor] = field(default_factory=dict)
    """Gradient norm of each part in this step; empty where it was left out."""

    def begin(self) -> None:
        """Set rates for the step, and note what a bad step is to undo."""
        self.state.set_rates()
        keep = self.state.config.max_bad_steps > 0
        self._statistics = [(b, b.clone()) for b in self.state.statistics()] if keep else []
        self._terms, self._norms, self._cached = [], {}, None

    def backward(self, runtime: Runtime, batch: Batch, taught: tuple[Any, ...]) -> None:
        """Forward and backward pass of a micro-batch on the device; `taught` as from `ask_teacher`.

        Where the loss is one of all micro-batches (`accumulation`), the backward passes wait for the last of them.
        """
        module, accumulate = self.state.module, self.state.config.accumulate
        if accumulate > 1 and couples_images(module):
            if self._cached is None:
                self._cached = CachedStep(module, runtime.autocast)
            self._cached.add(batch, *taught)
            if len(self._cached) == accumulate:
                self._terms.append(self._cached.backward(self._reduce))
                self._cached = None
            return
        self._reduce(len(self._terms) == accumulate - 1)
        with runtime.autocast():
            terms = module(batch, *taught)
        (terms["loss"] / accumulate).backward()
        self._terms.append({name: term.detach() for name, term in terms.items()})

    def update(self, runtime: Runtime, batches: Sequence[Batch], *, stop: bool) -> bool:
        """Clip, step, average; or leave the step out, or note in `error` that the run ends here.

        Args:
            runtime: Where the run is.
            batches: The step's micro-batches.
            stop: Whether this process is to stop.

        Returns:
            Whether any process is.
        """
        state = self.state
        parts = gradients.gradients_by_part(state.student)
        stopping, finite, norms = self._agree(runtime, stop, parts)
        if finite:
            gradients.clip(parts, norms, state.config.clip_norm)
            state.update()
            update_ema(state.ema, state.student, state.schedules.momentum(state.step))
            self._interval.add_terms(self._terms)
            self._norms = dict(zip(parts, norms, strict=True))
        else:
            try:
                sentence = record_bad_step(runtime, state, self._terms, batches, self.log.run_dir)
            except TrainingError as error:
                self.error = error
                state.optimizer.zero_grad(set_to_none=True)  # room for the others
                return stopping
            self.log.say(f"{sentence} It is left out.")
            for statistic, before in self._statistics:
                statistic.copy_(before)
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        return stopping

    def finish(self, runtime: Runtime, images: int, *, seconds: float, waited: float) -> None:
        """Log the step where a line is due, and call the hooks.

        Args:
            runtime: Where the run is.
            images: Of the step, over all processes.
            seconds: That the step took, with the other runs' part of it.
            waited: Seconds of these that went by before the batches were there.
        """
        state, log = self.state, self.log
        self._interval.add_step(seconds, waited)
        log.tick(state.step)
        line: dict[str, float] = {}
        if log.due(state.step):
            line = self._interval.means(runtime)
            line["skipped"] = float(runtime.sum(torch.tensor(float(log.skipped), device=runtime.device)))
            line["lr"] = state.schedules.lr(state.step - 1)
            if self._norms:
                norms = torch.stack(list(self._norms.values())).tolist()
                line |= {f"gradient_norm/{name}": norm for name, norm in zip(self._norms, norms, strict=True)}
            if state.bad_steps:
                line["bad_steps"] = float(state.bad_steps)
            line |= self._interval.pace(images, state.config.steps - state.step) | peak_memory(runtime.device)
            log.write(state.step, line)
            self._interval = Interval()
        for hook in self.hooks:
            hook(state, line)
        if not state.student.training:  # an evaluation hook left it so
            state.module.train()

    def _reduce(self, now: bool) -> None:
        """Sum gradients over processes in the next backward pass or not: once per step, not per micro-batch."""
        if isinstance(self.state.student, FSDPModule):
            self.state.student.set_requires_gradient_sync(now)

    def _agree(self, runtime: Runtime, stop: bool, parts: Mapping[str, list[Tensor]]) -> tuple[bool, bool, Tensor]:
        """Whether to stop, whether all is finite, and each part's gradient norm: the same on all processes.

        One reduction tells them all three, so that they take the same turn. It is the step's one wait for the device:
        the price of never updating with a bad gradient. Meanwhile the device has nothing to do for as long as it takes
        to launch the update. A decision on the device, looked at a step later, would need every batch, term and
        statistic of the step before kept, and hooks and checkpoints told of a step that may not count.
        """
        loss = torch.stack([micro["loss"] for micro in self._terms]).double().sum()
        asked_to_stop = torch.full((1,), float(stop), dtype=torch.float64, device=loss.device)
        squares = gradients.squared_norms(parts) / runtime.replicas
        shares = runtime.sum(torch.cat([asked_to_stop, loss[None], squares]))
        stopping, finite = torch.stack([shares[0] > 0, torch.isfinite(shares).all()]).tolist()
        return stopping, finite, shares[2:].sqrt()


def ask_teacher(modules: Sequence[nn.Module], batch: Batch) -> tuple[Any, ...]:
    """What the modules' one teacher says of a batch, to follow the batch as an argument of each module.

    Args:
        modules: Of one kind, with the same teacher; or one alone, which may be taught by its own average.
        batch: On the device.

    Returns:
        It alone; nothing where the modules have no `teach`.
    """
    teach = getattr(modules[0], "teach", None)
    return () if teach is None else (teach(batch),)
