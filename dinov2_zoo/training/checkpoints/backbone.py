"""A backbone out of a training checkpoint: any branch of it, whole, without building the run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.models.zoo import MODELS
from dinov2_zoo.training.checkpoints.index import check_index
from dinov2_zoo.training.checkpoints.manifest import check_files
from dinov2_zoo.weights.key_maps import State
from dinov2_zoo.weights.read import check_state, infer_config


def load_training_weights(folder: Path, branch: Literal["ema", "student"] = "ema") -> tuple[ModelConfig, State]:
    """The backbone of one branch of a training checkpoint.

    Args:
        folder: `runs/x/checkpoints/step-N`.
        branch: The average, which is what is released, or the student itself.

    Returns:
        Shape and tensors under our names.

    Raises:
        CheckpointError: The checkpoint is damaged, not one of ours, or of a timm network.
    """
    check_files(folder)
    check_index(folder)
    prefix = f"module.{branch}.backbone."
    entries = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    load(tensors, checkpoint_id=folder, no_dist=True)
    state: State = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if "cls_token" not in state or any(name.startswith("net.") for name in state):
        raise CheckpointError(f"{folder} holds no Vision Transformer of ours: convert models of `vit...14` students.")
    config = infer_config(state, "timm")
    named = MODELS.get(_model_name(folder), config)
    # How positions are resampled cannot be told from shapes.
    config = replace(config, position_offset=named.position_offset, position_antialias=named.position_antialias)
    check_state(config, state, what=str(folder))
    return config, state


def _model_name(folder: Path) -> str:
    """The architecture that the run's config.json names; empty where there is none."""
    record = folder.parent.parent / "config.json"
    settings: dict[str, Any] = json.loads(record.read_text())["config"] if record.is_file() else {}
    return str(settings.get("student") or settings.get("model") or "")
