"""How well a student stands in for its teacher, on images that neither training nor the projector has seen."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.data.decode import decode
from dinov2_zoo.data.preprocess import eval_image
from dinov2_zoo.data.sources import Source
from dinov2_zoo.evaluation.agreement import Agreement, agreement
from dinov2_zoo.evaluation.encoder import Tokens
from dinov2_zoo.evaluation.features import Features, class_features
from dinov2_zoo.evaluation.knn import knn_leave_one_out
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.objectives.closed_form import LinearMap
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.features import FeaturesObjective

Autocast = Callable[[], AbstractContextManager[object]]

# One figure stands in tables; the official help text favours it.
KNN_K = 20


@dataclass(frozen=True)
class Measured:
    """Agreement over the held-out images, and the patch maps that the pictures show."""

    agreement: Agreement
    teacher_patches: Float[Tensor, "B N D"]
    student_patches: Float[Tensor, "B N D"]
    """The student's patches in the teacher's space."""


class BranchEncoder:
    """A branch's backbone as an `Encoder`, sharded or not: it is called through the branch."""

    def __init__(self, branch: Branch, device: torch.device, autocast: Autocast = nullcontext) -> None:
        self.branch = branch
        self.device = device
        self.autocast = autocast

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Tokens of normalised images."""
        output = self.outputs(images)
        return Tokens(output["class"], output["patches"])

    @torch.no_grad()
    def outputs(self, images: Float[Tensor, "B 3 H W"]) -> dict[str, Tensor]:
        """All that the branch says about some images, [B, ...]; in evaluation mode, as it was afterwards."""
        was_training = self.branch.training
        self.branch.eval()
        try:
            with self.autocast():
                found = self.branch([images[None].to(self.device, non_blocking=True)])[0]
        finally:
            self.branch.train(was_training)
        return {name: x[0] for name, x in found.items() if not name.endswith("prototypes")}


def load_images(source: Source, size: int, limit: int | None = None) -> Float[Tensor, "B 3 S S"]:
    """Prepare a source's images for measuring: short side resized, centre crop, ImageNet statistics."""
    count = len(source) if limit is None else min(limit, len(source))
    return torch.stack([eval_image(decode(source.read(i)), size) for i in range(count)])


def measure(
    distillation: Distillation,
    images: Float[Tensor, "B 3 S S"],
    *,
    device: torch.device,
    maps: tuple[LinearMap, LinearMap] | None = None,
    autocast: Autocast = nullcontext,
    batch_size: int = 32,
) -> Measured:
    """Compare the student's average, which is what will be released, with the teacher. Every process must call it.

    Args:
        distillation: The run's module.
        images: Kept out of training; the same on every process.
        device: Where the module is.
        maps: Linear maps of (class, patch) tokens into the teacher's space; needed where the objective has none.
        autocast: Precision of the forward passes.
        batch_size: Images at a time.
    """
    student_of, teacher_of = (
        BranchEncoder(b, device, autocast).outputs for b in (distillation.ema, distillation.teacher)
    )
    collected: dict[str, list[Tokens]] = {"student": [], "projected": [], "teacher": []}
    for part in images.split(batch_size):
        mine, theirs = student_of(part), teacher_of(part)
        if isinstance(distillation.objective, FeaturesObjective):
            projected = distillation.objective.in_teacher_space(mine)
        else:
            assert maps is not None, "prototypes distillation is measured through fitted maps"
            projected = {name: m(mine[name].double()) for name, m in zip(("class", "patches"), maps, strict=True)}
        for name, tokens in (("student", mine), ("projected", projected), ("teacher", theirs)):
            collected[name].append(Tokens(tokens["class"].float(), tokens["patches"].float()))
    student, projected, teacher = (_join(parts) for parts in collected.values())
    return Measured(agreement(student, projected, teacher), teacher.patches.cpu(), projected.patches.cpu())


def knn(branch: Branch, source: Source, *, size: int, device: torch.device, autocast: Autocast = nullcontext) -> float:
    """k-NN accuracy (k = 20, leave-one-out) of a branch's class token on labelled images, 0..1."""
    found: Features = class_features(BranchEncoder(branch, device, autocast), source, size=size)
    assert found.labels is not None, "a labelled source is checked when it is opened"
    accuracies: Mapping[int, float] = knn_leave_one_out(found.features, found.labels, k=(KNN_K,))
    return next(iter(accuracies.values()))


def _join(parts: list[Tokens]) -> Tokens:
    return Tokens(torch.cat([p.class_token for p in parts]), torch.cat([p.patches for p in parts]))
