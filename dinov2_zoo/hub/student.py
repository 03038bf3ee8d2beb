"""The released student: its average's backbone as a model, and beside it what was only needed to train it."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dinov2_zoo.checkpoints.heads import HEADS_FILE
from dinov2_zoo.checkpoints.write import save_timm, save_weights
from dinov2_zoo.models.students import TimmStudent
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.features import FeaturesObjective

PROJECTOR_FILE = "projector.safetensors"


def save_student(folder: Path, distillation: Distillation, average: dict[str, Tensor]) -> None:
    """Write a trained student.

    Args:
        folder: To be created: the model, as `save_weights` (or timm, for its networks) writes it, and one of
            projector.safetensors, linear maps `class_token` and `patches` from the student's tokens to its teacher's,
            or heads.safetensors.
        distillation: The run's module.
        average: All weights of its `ema` branch as whole CPU tensors (`Runtime.full_state_dict`).
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in average.items():
        part, inner = name.split(".", 1)
        parts.setdefault(part, {})[inner] = tensor
    backbone = distillation.ema.backbone
    if isinstance(backbone, TimmStudent):
        # A network of its own, for the run's may be sharded.
        released = TimmStudent(backbone.name, backbone.img_size)
        released.load_state_dict(parts["backbone"])
        save_timm(folder, backbone.name, released.net)
    else:
        save_weights(folder, backbone.config, parts["backbone"])
    if isinstance(distillation.objective, FeaturesObjective):
        save_file(_unstandardised(parts["projector"], distillation.objective), folder / PROJECTOR_FILE)
    else:
        heads = {f"{part}_head.{name}": t for part in ("dino", "ibot") for name, t in parts[part].items()}
        save_file(heads, folder / HEADS_FILE)


def _unstandardised(projector: dict[str, Tensor], objective: FeaturesObjective) -> dict[str, Tensor]:
    """The projector with the teacher's scale folded in, so that it gives the teacher's own tokens."""
    scales = {
        "class_token": (objective.class_mean, objective.class_deviation),
        "patches": (objective.patch_mean, objective.patch_deviation),
    }
    folded: dict[str, Tensor] = {}
    for layer, statistics in scales.items():
        mean, deviation = (torch.as_tensor(s).cpu() for s in statistics)
        folded[f"{layer}.weight"] = projector[f"{layer}.weight"] * deviation[:, None]
        folded[f"{layer}.bias"] = projector[f"{layer}.bias"] * deviation + mean
    return folded
