"""What a training checkpoint holds, and how it gets back into a run.

The tensors go through torch.distributed.checkpoint: each process writes and reads the shards it holds, so a run may be
continued on another number of processes, sharded or not. (Its index is a pickle, and is only read if it names nothing
but what torch writes there.) There is no random state to save: whatever is drawn follows from the seed and the
step or the image.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load

from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.training.checkpoints.index import check_index
from dinov2_zoo.training.checkpoints.manifest import read_manifest
from dinov2_zoo.training.state import TrainState


def state_tensors(state: TrainState) -> dict[str, Tensor]:
    """Live tensors of a checkpoint: weights and buffers of all but the frozen teacher, and the optimizer's memory."""
    return _model_tensors(state) | _optimizer_tensors(state)


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Load a checkpoint into a state that was built as for a new run, in place. Every process must call it.

    Raises:
        CheckpointError: The folder is no checkpoint, cannot be read, or holds other tensors than the state.
    """
    manifest = read_manifest(folder)
    check_index(folder)
    recorded: dict[str, Any] = manifest["tensors"]
    targets = _model_tensors(state)
    expected = {name: list(t.shape) for name, t in targets.items()}
    found = {name: shape for name, (shape, _) in recorded.items() if name.startswith("module.")}
    if expected != found:
        raise CheckpointError(f"{folder} does not fit this run: {_difference(expected, found)}.")
    parameters = _parameter_names(state)
    slots: dict[str, dict[str, Tensor]] = {}
    for key, (shape, dtype) in recorded.items():
        if not key.startswith("optimizer."):
            continue
        name, slot = key.removeprefix("optimizer.").rsplit(".", 1)
        if name not in parameters:
            raise CheckpointError(f"{folder} does not fit this run: it trains {name}, this run does not.")
        parameter = parameters[name]
        # Moments have their parameter's shape and sharding; AdamW's own step count is a scalar on the CPU.
        moment = torch.zeros_like(parameter) if shape == list(parameter.shape) else torch.zeros(shape)
        slots.setdefault(name, {})[slot] = targets[key] = moment.to(getattr(torch, dtype))
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", message=".*single process.*")  # torch's remark on what we asked for
            load(targets, checkpoint_id=folder, no_dist=not dist.is_initialized())
    except (OSError, CheckpointException) as error:
        raise CheckpointError(f"{folder} cannot be read ({error}): delete it to resume from the one before.") from error
    state.optimizer.state.clear()
    for name, values in slots.items():
        state.optimizer.state[parameters[name]] = values
    state.step, state.bad_steps = manifest["step"], manifest["bad_steps"]


def _model_tensors(state: TrainState) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.tensors().items()}


def _parameter_names(state: TrainState) -> dict[str, Tensor]:
    """Parameters that the optimizer moves, by name in the module."""
    moved = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in state.module.named_parameters() if id(p) in moved}


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    """The optimizer's memory by parameter name. Its settings follow from the configuration and the step."""
    moments: dict[str, Tensor] = {}
    for name, parameter in _parameter_names(state).items():
        for slot, value in state.optimizer.state.get(parameter, {}).items():
            moments[f"optimizer.{name}.{slot}"] = value
    return moments


def _difference(expected: dict[str, list[int]], found: dict[str, list[int]]) -> str:
    """Names and shapes that differ, a few of each kind, and what to do."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shapes = [f"{n} is {found[n]}, not {expected[n]}" for n in expected if n in found and found[n] != expected[n]]
    kinds = (("it lacks ", missing), ("it has also ", extra), ("", shapes))
    words = [start + ", ".join(items[:3]) + (", ..." if len(items) > 3 else "") for start, items in kinds if items]
    return "; ".join(words) + "; resume with the settings that the run was started with"
