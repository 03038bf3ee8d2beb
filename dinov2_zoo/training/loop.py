"""The training loop: one function, the same on one CPU and on many GPUs."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.errors import TrainingError
from dinov2_zoo.training import gradients
from dinov2_zoo.training.bad_steps import record_bad_step
from dinov2_zoo.training.ema import update_ema
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
    stream = iter(batches)
    totals: dict[str, Tensor] = {}  # on the device: reading them every step would make the host wait
    steps_in_totals, steps_in_line, waited, stopping = 0, 0, 0.0, False

    while state.step < config.steps and not stopping:
        started = time.perf_counter()
        schedules.apply(state.optimizer, state.step)
        # What the forward pass itself moves (centres, running statistics), to undo a bad step.
        statistics = [(b, b.clone()) for b in state.statistics()] if config.max_bad_steps else []

        micro_terms: list[dict[str, Tensor]] = []
        micro_batches: list[Batch] = []
        for micro in range(config.accumulate):
            asked = time.perf_counter()
            batch = next(stream, None)
            waited += time.perf_counter() - asked
            if batch is None:
                raise TrainingError(
                    f"The data ended at step {state.step} of {config.steps}: give more, or fewer steps."
                )
            log.skip(batch.skipped)
            micro_batches.append(batch)
            if isinstance(state.student, FSDPModule):  # reduce gradients once per step, not once per micro-batch
                state.student.set_requires_gradient_sync(micro == config.accumulate - 1)
            with runtime.autocast():
                terms = state.module(batch.to(runtime.device, non_blocking=True))
            (terms["loss"] / config.accumulate).backward()
            micro_terms.append({name: term.detach() for name, term in terms.items()})

        # One reduction tells all processes the gradient norms, whether anything is not finite and whether one of them
        # was asked to stop, so all take the same turn. It is the step's one wait for the device: the price of never
        # updating with a bad gradient.
        parts = gradients.gradients_by_part(state.student)
        loss = torch.stack([terms["loss"] for terms in micro_terms]).sum().double()
        asked_to_stop = torch.full((1,), float(stop()), dtype=torch.float64, device=loss.device)
        squares = gradients.squared_norms(parts) / runtime.replicas
        shares = runtime.sum(torch.cat([asked_to_stop, loss[None], squares]))
        stopping, finite = torch.stack([shares[0] > 0, torch.isfinite(shares).all()]).tolist()
        norms = shares[2:].sqrt()
        if finite:
            gradients.clip(parts, norms, config.clip_norm)
            state.optimizer.step()
            update_ema(state.ema, state.student, schedules.momentum(state.step))
            for terms in micro_terms:
                for name, term in terms.items():
                    totals[name] = totals.get(name, 0) + term / config.accumulate
            steps_in_totals += 1
        else:
            log.say(record_bad_step(runtime, state, micro_terms, micro_batches, log.run_dir) + " It is left out.")
            for statistic, before in statistics:
                statistic.copy_(before)
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        steps_in_line += 1

        log.tick(state.step, time.perf_counter() - started)
        line: dict[str, float] = {}
        if log.due(state.step):
            line = runtime.mean({name: total / steps_in_totals for name, total in totals.items()})
            line["skipped"] = float(runtime.sum(torch.tensor(float(log.skipped), device=runtime.device)))
            line["lr"] = schedules.lr(state.step - 1)
            if finite:
                line |= {f"gradient_norm/{name}": norm for name, norm in zip(parts, norms.tolist(), strict=True)}
            if state.bad_steps:
                line["bad_steps"] = float(state.bad_steps)
            seconds = log.step_seconds()
            images = sum(len(batch.sample_ids) for batch in micro_batches)
            line["images_per_second"] = images * runtime.world_size / seconds
            line["hours_left"] = (config.steps - state.step) * seconds / 3600
            line["data_wait"] = waited / steps_in_line / seconds
            if runtime.device.type == "cuda":
                line["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            log.write(state.step, line)
            totals, steps_in_totals, steps_in_line, waited = {}, 0, 0, 0.0
        for hook in hooks:
            hook(state, line)
        if not state.student.training:  # an evaluation hook left it so
            state.module.train()
