"""The training of a head on a frozen encoder: one loop for depth and segmentation, resumable."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov2_zoo.errors import CheckpointError, TrainingError
from dinov2_zoo.evaluation.dense.pairs import PairBatch, PairSource, Transform, training_batches
from dinov2_zoo.files import atomic_write
from dinov2_zoo.training.distributed import DistributedContext, average_gradients

SAVED = "head.pt"
"""File of a head's training state in its folder."""


def train_head(
    head: nn.Module,
    loss: Callable[[PairBatch, int], Tensor],
    source: PairSource,
    transform: Transform,
    optimizer: torch.optim.Optimizer,
    factor: Callable[[int], float],
    *,
    steps: int,
    batch_size: int,
    workers: int,
    clip_norm: float | None,
    processes: DistributedContext,
    folder: Path | None = None,
    protocol: Mapping[str, Any] | None = None,
    save_every: int = 1000,
    say: Callable[[str], object] = lambda _: None,
) -> float:
    """Train a head, going on from `folder` if a part is done there.

    Args:
        head: What is trained.
        loss: Scalar of a batch, at a step counted from 0; runs the encoder without gradient and the head with it.
        source: Images with targets.
        transform: Their augmentation.
        optimizer: Its rates are the peak rates.
        factor: Of the learning rate at a step.
        steps: Total.
        batch_size: Over all processes.
        workers: Threads that read and augment.
        clip_norm: Gradient norm above which it is scaled down; None: never.
        processes: Gradients are averaged over them.
        folder: Where the state is saved; None: nowhere.
        protocol: Settings that the state belongs to; a state of others is refused.
        save_every: Steps between saves.
        say: Takes a line of progress now and then.

    Returns:
        The last step's loss.

    Raises:
        TrainingError: The loss is not finite.
        CheckpointError: The folder holds the state of another training.
    """
    key = json.dumps(protocol or {}, sort_keys=True, default=str)
    file = folder / SAVED if folder else None
    done = _load(file, head, optimizer, key) if file and file.is_file() else 0
    peaks = (
        [group["lr"] for group in optimizer.param_groups] if not done else [g["peak"] for g in optimizer.param_groups]
    )
    last = float("nan")
    stream = training_batches(
        source, transform, batch_size=batch_size, processes=processes, start=done, workers=workers
    )
    head.train()
    for step in range(done, steps):
        batch = next(stream)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak"], group["lr"] = peak, peak * factor(step)
        value = loss(batch, step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        average_gradients(head, processes)
        finite = processes.sum(torch.tensor(float(not torch.isfinite(value)), device=processes.device))
        if finite.item():
            raise TrainingError(
                f"The loss of the head is not finite at step {step}: lower its rate, check the targets."
            )
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(head.parameters(), clip_norm)
        optimizer.step()
        last = value.item()
        if file and processes.is_main and ((step + 1) % save_every == 0 or step + 1 == steps):
            _save(file, head, optimizer, key, step + 1)
        if (step + 1) % max(1, steps // 10) == 0:
            say(f"step {step + 1} of {steps}, loss {last:.3f}")
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
