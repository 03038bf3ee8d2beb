"""The training loop: one function, the same on one CPU and on many GPUs."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.errors import TrainingError
from dinov2_zoo.training import gradients
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
) -> None:
    """Train `state` in place from `state.step` to `state.config.steps`.

    Args:
        runtime: Where to run.
        state: Module, optimizer, step. The module maps a batch to scalar terms, "loss" the one to minimise,
            each a mean over this process's images.
        batches: This process's micro-batches from `state.step` on, `state.config.accumulate` per step.
        log: Receives terms (means since its last line), lr, gradient norms, images/s.
        hooks: Checkpoints, evaluation and whatever else a recipe wants after a step.

    Raises:
        TrainingError: A loss or gradient is not finite (raised before the update, so the weights are still good),
            or `batches` ended early.
    """
    config, schedules = state.config, state.schedules
    state.module.train()
    stream = iter(batches)
    totals: dict[str, Tensor] = {}  # on the device: reading them every step would make the host wait
    steps_in_totals, waited = 0, 0.0

    while state.step < config.steps:
        started = time.perf_counter()
        schedules.apply(state.optimizer, state.step)

        micro_terms: list[dict[str, Tensor]] = []
        sample_ids: list[Tensor] = []
        for micro in range(config.accumulate):
            asked = time.perf_counter()
            batch = next(stream, None)
            waited += time.perf_counter() - asked
            if batch is None:
                raise TrainingError(
                    f"The data ended at step {state.step} of {config.steps}: give more, or fewer steps."
                )
            log.skip(batch.skipped)
            sample_ids.append(batch.sample_ids)
            if isinstance(state.student, FSDPModule):  # reduce gradients once per step, not once per micro-batch
                state.student.set_requires_gradient_sync(micro == config.accumulate - 1)
            with runtime.autocast():
                terms = state.module(batch.to(runtime.device, non_blocking=True))
            (terms["loss"] / config.accumulate).backward()
            micro_terms.append({name: term.detach() for name, term in terms.items()})

        # One reduction tells all processes the gradient norms and whether anything is not finite, so all take the same
        # turn. `.item()` is the step's one wait for the device: the price of never updating with a bad gradient.
        parts = gradients.gradients_by_part(state.student)
        loss = torch.stack([terms["loss"] for terms in micro_terms]).sum().double()
        shares = runtime.sum(torch.cat([loss[None], gradients.squared_norms(parts)]))
        if not torch.isfinite(shares).all().item():
            _stop(runtime, state, micro_terms, sample_ids, log.run_dir)
        norms = shares[1:].sqrt()
        gradients.clip(parts, norms, config.clip_norm)

        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        update_ema(state.ema, state.student, schedules.momentum(state.step))
        state.step += 1

        for terms in micro_terms:
            for name, term in terms.items():
                totals[name] = totals.get(name, 0) + term / config.accumulate
        steps_in_totals += 1
        log.tick(state.step, time.perf_counter() - started)
        line: dict[str, float] = {}
        if log.due(state.step):
            line = runtime.mean({name: total / steps_in_totals for name, total in totals.items()})
            line["skipped"] = float(runtime.sum(torch.tensor(float(log.skipped), device=runtime.device)))
            line["lr"] = schedules.lr(state.step - 1)
            line |= {f"gradient_norm/{name}": norm for name, norm in zip(parts, norms.tolist(), strict=True)}
            seconds = log.step_seconds()
            line["images_per_second"] = sum(len(ids) for ids in sample_ids) * runtime.world_size / seconds
            line["data_wait"] = waited / steps_in_totals / seconds
            if runtime.device.type == "cuda":
                line["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            log.write(state.step, line)
            totals, steps_in_totals, waited = {}, 0, 0.0
        for hook in hooks:
            hook(state, line)
        if not state.student.training:  # an evaluation hook left it so
            state.module.train()


def _stop(
    runtime: Runtime,
    state: TrainState,
    micro_terms: Sequence[Mapping[str, Tensor]],
    sample_ids: Sequence[Tensor],
    run_dir: Path | None,
) -> None:
    """Raise on every process, with what a person needs to find the cause; the ids go to bad_batch.json."""
    bad = sorted({name for terms in micro_terms for name, term in terms.items() if not term.isfinite().all().item()})
    mine = {"terms": bad, "sample_ids": torch.cat([ids.cpu() for ids in sample_ids]).tolist()}
    everyone = runtime.gather(mine)
    names = sorted({name for process in everyone for name in process["terms"]})
    # Ids of the processes where a term went wrong; of all of them when only the gradient did.
    blamed = [process for process in everyone if process["terms"]] or everyone
    ids = [i for process in blamed for i in process["sample_ids"]]
    lr = state.schedules.lr(state.step)
    if run_dir is not None and runtime.is_main:
        record = {"step": state.step, "terms": names, "lr": lr, "sample_ids": ids}
        (run_dir / "bad_batch.json").write_text(json.dumps(record) + "\n")
    what = f"not finite: {', '.join(names)}" if names else "not finite: the gradient (the losses are)"
    shown = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
    raise TrainingError(
        f"Step {state.step}, {what}; learning rate {lr:.3g}; samples {shown}"
        f"{f' (all in {run_dir}/bad_batch.json)' if run_dir else ''}. The weights are those before this step: "
        "resume from the last checkpoint with a lower optim.base_lr or more warm-up, or runtime.precision fp32."
    )
