"""The training of a head on a frozen encoder: one loop for depth and segmentation, resumable."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2_zoo.errors import CheckpointError, TrainingError
from dinov2_zoo.evaluation.dense.pairs import PairBatch, ReadPairs
from dinov2_zoo.evaluation.encoders.reading import TrainingOrder, read_ahead
from dinov2_zoo.evaluation.workspace import Workspace
from dinov2_zoo.files import atomic_write
from dinov2_zoo.training.distributed import average_gradients

SAVED = "head.pt"
"""File of a head's training state in its folder."""


@dataclass(frozen=True)
class Schedule:
    """How long a head is trained, and by which steps."""

    steps: int
    """Total."""
    batch_size: int
    """Pairs per step over all processes."""
    factor: Callable[[int], float]
    """Factor of the optimizer's rates at a step, counted from 0."""
    clip_norm: float | None = None
    """Gradient norm above which it is scaled down; None: never."""
    save_every: int = 1000
    """Steps between saves."""
    workers: int = 2
    """Processes that read and augment."""


def train_head(
    head: nn.Module,
    loss: Callable[[PairBatch, int], Tensor],
    pairs: ReadPairs,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    workspace: Workspace,
    key: Mapping[str, Any],
) -> float:
    """Train a head, going on from the workspace's folder if a part is done there.

    Args:
        head: What is trained.
        loss: Scalar of a batch, at a step counted from 0; runs the encoder without gradient and the head with it.
        pairs: Images with targets, and their augmentation.
        optimizer: Its rates are the peak rates.
        schedule: Steps and rates.
        workspace: Gradients are averaged over its processes; the state is saved in its folder.
        key: Settings that the state belongs to; a state of others is refused.

    Returns:
        The last step's loss.

    Raises:
        DataError: There are no pairs, or one cannot be read.
        TrainingError: The loss is not finite.
        CheckpointError: The folder holds the state of another training.
    """
    file, text = workspace.folder / SAVED, json.dumps(key, sort_keys=True, default=str)
    context, steps = workspace.context, schedule.steps
    done = _load(file, head, optimizer, text) if file.is_file() else 0
    peaks = [group.get("peak", group["lr"]) for group in optimizer.param_groups]
    order = TrainingOrder(len(pairs.source), schedule.batch_size, context, steps=steps, start=done)
    last = float("nan")
    head.train()
    for step, batch in enumerate(read_ahead(pairs, order, schedule.workers), start=done):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak"], group["lr"] = peak, peak * schedule.factor(step)
        value = loss(batch, step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        average_gradients(head, context)
        finite = context.sum(torch.tensor(float(not torch.isfinite(value)), device=context.device))
        if finite.item():
            raise TrainingError(
                f"The loss of the head is not finite at step {step}: lower its rate, check the targets."
            )
        if schedule.clip_norm is not None:
            nn.utils.clip_grad_norm_(head.parameters(), schedule.clip_norm)
        optimizer.step()
        last = value.item()
        if context.is_main and ((step + 1) % schedule.save_every == 0 or step + 1 == steps):
            _save(file, head, optimizer, text, step + 1)
        if (step + 1) % max(1, steps // 10) == 0:
            workspace.say(f"step {step + 1} of {steps}, loss {last:.3f}")
    head.eval()
    return last


def _save(file: Path, head: nn.Module, optimizer: torch.optim.Optimizer, key: str, step: int) -> None:
    state = {"head": head.state_dict(), "optimizer": optimizer.state_dict(), "protocol": key, "step": step}
    with atomic_write(file) as partial:
        torch.save(state, partial)


def _load(file: Path, head: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> int:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged file makes it stumble over
        raise CheckpointError(f"{file} cannot be read ({type(error).__name__}): remove it to train anew.") from error
    if state["protocol"] != key:
        raise CheckpointError(f"{file} is of a training with other settings: remove it, or name another run.")
    head.load_state_dict(state["head"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def warmup(step: int, steps: int, start: float) -> float:
    """Factor that rises linearly from `start` to 1 over the first `steps` steps."""
    return 1.0 if step >= steps else start + (1 - start) * step / steps
