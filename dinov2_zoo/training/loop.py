"""The training loop: one function, the same on one CPU and on many GPUs."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.training import gradients
from dinov2_zoo.training.bad_steps import record_bad_step
from dinov2_zoo.training.ema import update_ema
from dinov2_zoo.training.interval import Interval, peak_memory
from dinov2_zoo.training.log import RunLog
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState

Hook = Callable[[TrainState, Mapping[str, float]], None]
"""Called after every step, on every process, with the state and the line just logged (empty when none was due)."""


def train(
    runtime: Runtime,
    state: TrainState,
    batches: Iterable[Batch],
    log: RunLog,
    hooks: Sequence[Hook] = (),
    *,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train `state` in place from `state.step` to `state.config.steps`, or until one process is asked to stop.

    Args:
        runtime: Where to run.
        state: Module, optimizer, step. The module maps a batch to scalar terms, "loss" the one to minimise,
            each a mean over this process's images.
        batches: This process's micro-batches from `state.step` on, `state.config.accumulate` per step.
        log: Receives terms (means since its last line), lr, gradient norms, images/s.
        hooks: Checkpoints, evaluation and whatever else a recipe wants after a step.
        stop: Whether this process is to stop; if one is, all return after the same step.

    Raises:
        TrainingError: A loss or gradient is not finite once more than `optim.max_bad_steps` (raised before the update,
            so the weights are still good), or `batches` ended early.
    """
    config, schedules = state.config, state.schedules
    state.module.train()
    stream, interval, stopping = iter(batches), Interval(), False

    while state.step < config.steps and not stopping:
        started = time.perf_counter()
        schedules.apply(state.optimizer, state.step)
        # What the forward pass itself moves (centres, running statistics), to undo a bad step.
        statistics = [(b, b.clone()) for b in state.statistics()] if config.max_bad_steps else []
        micro_batches: list[Batch] = []
        micro_terms: list[dict[str, Tensor]] = []
        for micro in range(config.accumulate):
            # ---------------------------------------------------------------- batch
            batch = interval.next_batch(stream, f"step {state.step} of {config.steps}")
            micro_batches.append(batch)
            log.skip(batch.skipped)

            # ---------------------------------------------------------------- backward
            if isinstance(state.student, FSDPModule):  # reduce gradients once per step, not once per micro-batch
                state.student.set_requires_gradient_sync(micro == config.accumulate - 1)
            with runtime.autocast():
                terms = state.module(batch.to(runtime.device, non_blocking=True))
            (terms["loss"] / config.accumulate).backward()
            micro_terms.append({name: term.detach() for name, term in terms.items()})

        # -------------------------------------------------------------------- update
        parts = gradients.gradients_by_part(state.student)
        stopping, finite, norms = _agree(runtime, stop(), micro_terms, parts)
        if finite:
            gradients.clip(parts, norms, config.clip_norm)
            state.optimizer.step()
            update_ema(state.ema, state.student, schedules.momentum(state.step))
            interval.add_terms(micro_terms)
        else:
            log.say(record_bad_step(runtime, state, micro_terms, micro_batches, log.run_dir) + " It is left out.")
            for statistic, before in statistics:
                statistic.copy_(before)
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1

        # -------------------------------------------------------------------- log
        interval.add_step(time.perf_counter() - started)
        log.tick(state.step)
        line: dict[str, float] = {}
        if log.due(state.step):
            images = runtime.world_size * sum(len(batch.sample_ids) for batch in micro_batches)
            line = interval.means(runtime)
            line["skipped"] = float(runtime.sum(torch.tensor(float(log.skipped), device=runtime.device)))
            line["lr"] = schedules.lr(state.step - 1)
            if finite:
                line |= {f"gradient_norm/{name}": norm for name, norm in zip(parts, norms.tolist(), strict=True)}
            if state.bad_steps:
                line["bad_steps"] = float(state.bad_steps)
            line |= interval.pace(images, config.steps - state.step) | peak_memory(runtime.device)
            log.write(state.step, line)
            interval = Interval()
        for hook in hooks:
            hook(state, line)
        if not state.student.training:  # an evaluation hook left it so
            state.module.train()


def _agree(
    runtime: Runtime, stop: bool, terms: Sequence[Mapping[str, Tensor]], parts: Mapping[str, list[Tensor]]
) -> tuple[bool, bool, Tensor]:
    """Whether to stop, whether all is finite, and each part's gradient norm: the same on all processes.

    One reduction tells them all three, so that they take the same turn. It is the step's one wait for the device: the
    price of never updating with a bad gradient.
    """
    loss = torch.stack([micro["loss"] for micro in terms]).double().sum()
    asked_to_stop = torch.full((1,), float(stop), dtype=torch.float64, device=loss.device)
    squares = gradients.squared_norms(parts) / runtime.replicas
    shares = runtime.sum(torch.cat([asked_to_stop, loss[None], squares]))
    stopping, finite = torch.stack([shares[0] > 0, torch.isfinite(shares).all()]).tolist()
    return stopping, finite, shares[2:].sqrt()
