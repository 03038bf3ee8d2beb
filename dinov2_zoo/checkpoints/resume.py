"""Training checkpoints: written aside and renamed, so that a folder named step-N is always whole.

The tensors go through torch.distributed.checkpoint: each process writes the shards it holds, and a run may be
continued on another number of processes. (Its index is a pickle, so resume only runs that you trust; released
weights are safetensors.)
"""

import contextlib
import json
import shutil
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.training.state import TrainState

FORMAT = 1
"""Version of the layout of a checkpoint folder."""


def save_checkpoint(run_dir: Path, state: TrainState, *, keep: int) -> Path:
    """Write `run_dir/checkpoints/step-N` and remove all but the newest `keep`. Every process must call it.

    Args:
        run_dir: The run folder, seen by all processes.
        state: Student, EMA, buffers, optimizer and step are saved; the frozen teacher is not.
        keep: Checkpoints left afterwards, at least 1.

    Returns:
        The new checkpoint's folder.
    """
    folder = run_dir / "checkpoints" / f"step-{state.step}"
    partial = folder.with_name(f".step-{state.step}.tmp")
    if _is_main():
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(".step-*.tmp"):  # a run that was killed while it wrote
            shutil.rmtree(left)
    _barrier()
    tensors = _model_tensors(state) | _optimizer_tensors(state)
    with _quiet():
        save(tensors, checkpoint_id=partial, no_dist=not dist.is_initialized())
    _barrier()
    if _is_main():
        shapes = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in tensors.items()}
        manifest = {"format": FORMAT, "step": state.step, "tensors": shapes}
        (partial / "manifest.json").write_text(json.dumps(manifest) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        for old in _checkpoints(run_dir)[:-keep]:
            shutil.rmtree(old)
    _barrier()
    return folder


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return next(iter(reversed(_checkpoints(run_dir))), None)


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Load a checkpoint into a state that was built as for a new run, in place. Every process must call it.

    Raises:
        CheckpointError: The folder is no checkpoint, or holds other tensors than the state.
    """
    manifest = _read_manifest(folder)
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
        with _quiet(), torch.no_grad():
            load(targets, checkpoint_id=folder, no_dist=not dist.is_initialized())
    except (OSError, CheckpointException) as error:
        raise CheckpointError(f"{folder} cannot be read ({error}): delete it to resume from the one before.") from error
    state.optimizer.state.clear()
    for name, values in slots.items():
        state.optimizer.state[parameters[name]] = values
    state.step = manifest["step"]


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


def _checkpoints(run_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    folders = [f for f in (run_dir / "checkpoints").glob("step-*") if (f / "manifest.json").exists()]
    return sorted(folders, key=lambda f: int(f.name.removeprefix("step-")))


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: name a step-N folder with a manifest.") from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {manifest.get('format')}, this version reads {FORMAT}: "
            "resume with the version that wrote it."
        )
    return manifest


def _difference(expected: dict[str, list[int]], found: dict[str, list[int]]) -> str:
    """Names and shapes that differ, a few of each kind, and what to do."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shapes = [f"{n} is {found[n]}, not {expected[n]}" for n in expected if n in found and found[n] != expected[n]]
    kinds = (("it lacks ", missing), ("it has also ", extra), ("", shapes))
    words = [start + ", ".join(items[:3]) + (", ..." if len(items) > 3 else "") for start, items in kinds if items]
    return "; ".join(words) + "; resume with the settings that the run was started with"


def _is_main() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Silence torch's remark that one process saves on its own, which is what we asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")
        yield
