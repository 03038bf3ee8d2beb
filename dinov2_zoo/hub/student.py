"""The released student: its average's backbone as a model, and beside it what was only needed to train it."""

import copy
from pathlib import Path

from torch import Tensor

from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.students import TimmStudent
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.features import FeaturesObjective
from dinov2_zoo.objectives.several_teachers import SeveralTeachers
from dinov2_zoo.weights.checksums import write_checksums
from dinov2_zoo.weights.heads import HEADS_FILE, MADE_ON, norms_fingerprint, save_heads
from dinov2_zoo.weights.save import save_tensors, writing
from dinov2_zoo.weights.write import save_timm, save_weights

PROJECTOR_FILE = "projector.safetensors"
FURTHER_PROJECTOR_FILE = "projector-{name}.safetensors"


def save_branch(folder: Path, branch: Branch, weights: dict[str, Tensor], **about: str) -> None:
    """Write a branch's backbone as a model, and its heads, if it has any, beside it.

    Args:
        folder: To be created: the model, as `save_weights` (or timm, for its networks) writes it, and
            heads.safetensors. Tied heads are written twice, so that any reader finds both.
        branch: The run's, perhaps sharded: only its shape is read.
        weights: Its weights as whole CPU tensors (`Runtime.full_state_dict`).
        about: Where the heads come from, for their file's header.
    """
    backbone = branch.backbone
    if isinstance(backbone, TimmStudent):
        # A network of its own, for the run's may be sharded.
        released = TimmStudent(backbone.name, backbone.img_size)
        released.load_state_dict(_part(weights, "backbone"))
        save_timm(folder, released)
    else:
        assert isinstance(backbone, VisionTransformer), "a stored teacher has no weights to save"
        save_weights(folder, backbone.config, _part(weights, "backbone"))
    dino, ibot = _part(weights, "dino"), _part(weights, "dino" if branch.tied else "ibot")
    if dino and ibot:
        save_heads(folder / HEADS_FILE, dino, ibot, {MADE_ON: norms_fingerprint(_part(weights, "backbone")), **about})
        write_checksums(folder, HEADS_FILE)


def save_student(folder: Path, distillation: Distillation, average: dict[str, Tensor]) -> None:
    """Write a trained student.

    Args:
        folder: To be created, as by `save_branch`; with projector.safetensors, where it was distilled by features: maps
            `class_token` and `patches` from the student's tokens to its teacher's, linear, or two layers `fc1`, `fc2`
            with GELU between. Of several teachers the main one's, and projector-NAME.safetensors for each other.
        distillation: The run's module.
        average: All weights of its `ema` branch as whole CPU tensors.
    """
    save_branch(folder, distillation.ema, average)
    if not isinstance(distillation.objective, FeaturesObjective):
        return
    projectors = {PROJECTOR_FILE: (_part(average, "projector"), distillation.objective)}
    if isinstance(distillation, SeveralTeachers):
        further = _part(average, "further")
        for number, (name, lesson) in enumerate(zip(distillation.names[1:], distillation.lessons()[1:], strict=True)):
            projectors[FURTHER_PROJECTOR_FILE.format(name=name)] = _part(further, str(number)), lesson.objective
    with writing(folder):
        for file, (weights, objective) in projectors.items():
            save_tensors(_unstandardised(weights, objective), folder / file)
            write_checksums(folder, file)


def _part(weights: dict[str, Tensor], child: str) -> dict[str, Tensor]:
    """Weights of one child of a branch."""
    return {name.split(".", 1)[1]: tensor for name, tensor in weights.items() if name.split(".", 1)[0] == child}


def _unstandardised(projector: dict[str, Tensor], objective: FeaturesObjective) -> dict[str, Tensor]:
    """The projector with the teacher's scale folded into its last layers, so that it gives the teacher's own tokens."""
    folded = dict(projector)
    for name, standardiser in (("class_token", objective.class_token), ("patches", objective.patches)):
        last = f"{name}.fc2" if f"{name}.fc2.weight" in projector else name
        weight, bias = projector[f"{last}.weight"], projector[f"{last}.bias"]
        whole = copy.deepcopy(standardiser).cpu().out_of(weight, bias)
        folded |= {f"{last}.{part}": x.to(weight.dtype) for part, x in zip(("weight", "bias"), whole, strict=True)}
    return folded
