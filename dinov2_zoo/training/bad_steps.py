"""A step whose loss or gradient is not finite: what was in it is kept, and the run leaves it out or stops."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.errors import TrainingError
from dinov2_zoo.training.runtime import Runtime
from dinov2_zoo.training.state import TrainState


def record_bad_step(
    runtime: Runtime,
    state: TrainState,
    terms: Sequence[Mapping[str, Tensor]],
    batches: Sequence[Batch],
    run_dir: Path | None,
) -> str:
    """Note a bad step in bad_batches/ of the run folder and in `state`. Every process must call it, before the update.

    Writes step-N.json, with the loss terms and sample ids of the processes where a term went wrong (of all of them when
    only the gradient did), and their crops as step-N-process-R.safetensors.

    Args:
        runtime: Where the run is.
        state: Before the update; its count of bad steps is raised.
        terms: Loss terms of each micro-batch, or of all together.
        batches: The micro-batches.
        run_dir: The run folder; None writes nothing.

    Returns:
        A sentence that says what went wrong.

    Raises:
        TrainingError: The run has had more bad steps than `optim.max_bad_steps`.
    """
    values = [{name: term.item() for name, term in micro.items()} for micro in terms]
    bad = sorted({n for micro in terms for n, term in micro.items() if not term.isfinite().all().item()})
    ids = torch.cat([batch.sample_ids.cpu() for batch in batches]).tolist()
    mine: dict[str, Any] = {"process": runtime.rank, "bad": bad, "terms": values, "sample_ids": ids}
    everyone = runtime.gather(mine)
    blamed = [process for process in everyone if process["bad"]] or everyone
    lr = state.schedules.lr(state.step)
    if run_dir is not None:
        folder = run_dir / "bad_batches"
        folder.mkdir(exist_ok=True)
        if any(process["process"] == runtime.rank for process in blamed):
            save_file(_tensors(batches), folder / f"step-{state.step}-process-{runtime.rank}.safetensors")
        if runtime.is_main:
            # NaN is not JSON: values go in as Python writes them.
            processes = [p | {"terms": [{n: str(v) for n, v in m.items()} for m in p["terms"]]} for p in blamed]
            record = {"step": state.step, "lr": lr, "processes": processes}
            (folder / f"step-{state.step}.json").write_text(json.dumps(record, indent=1) + "\n")
    names = sorted({name for process in everyone for name in process["bad"]})
    what = ", ".join(names) if names else "the gradient (the losses are)"
    all_ids = [i for process in blamed for i in process["sample_ids"]]
    shown = ", ".join(map(str, all_ids[:8])) + (", ..." if len(all_ids) > 8 else "")
    kept = f" (all in {run_dir}/bad_batches)" if run_dir else ""
    sentence = f"Step {state.step}, not finite: {what}; learning rate {lr:.3g}; samples {shown}{kept}."
    state.bad_steps += 1
    if state.bad_steps > state.config.max_bad_steps:
        count = f" It is the bad step number {state.bad_steps} of this run." if state.bad_steps > 1 else ""
        raise TrainingError(
            f"{sentence}{count} The weights are those before this step: resume from the last checkpoint with a lower "
            "rate (relative_lr after a good start, else optim.base_lr), more warm-up or runtime.precision fp32, or let "
            "optim.max_bad_steps leave such steps out."
        )
    return sentence


def _tensors(batches: Sequence[Batch]) -> dict[str, Tensor]:
    names = ("global_crops", "local_crops", "sample_ids", "seeds", "masks")
    found = {f"{i}.{name}": getattr(batch, name) for i, batch in enumerate(batches) for name in names}
    return {name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}
