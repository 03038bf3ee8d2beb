"""How well a student stands in for its teacher, on images that neither training nor the projector has seen."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.config import EvaluationConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.decode import decode
from dinov2_zoo.data.preprocess import eval_image
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.classification.knn import knn_leave_one_out
from dinov2_zoo.evaluation.distilled.agreement import Agreement, agreement
from dinov2_zoo.evaluation.distilled.branch_encoder import BATCH, BranchEncoder
from dinov2_zoo.evaluation.distilled.several_teachers import FurtherAgreement, mean_score
from dinov2_zoo.evaluation.encoders.features import class_features
from dinov2_zoo.initialisation.ridge import fit_maps
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.tokens import Tokens
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.features import FeaturesObjective

# One number stands in tables; the official help text favours it.
KNN_K = 20


@dataclass(frozen=True)
class StudentMetrics:
    """What was measured of a student at one moment; None where there were no images for it."""

    agreement: Agreement | None
    knn: float | None
    """Accuracy of k-NN (k = 20, leave-one-out) on class tokens, 0..1."""
    maps: Float[Tensor, "B N D"] | None
    """The student's patches in the teacher's space, for pictures."""
    further: Mapping[str, Agreement] = field(default_factory=dict)
    """Agreement with the teachers beside the main one, by their names."""
    score: float | None = None
    """All agreement in one number, see `Examiner.score`."""

    def scalars(self) -> dict[str, float]:
        """All numbers by name, for logs."""
        found = {} if self.agreement is None else self.agreement.to_dict()
        for teacher, theirs in self.further.items():
            found |= {f"{name}/{teacher}": value for name, value in theirs.to_dict().items() if name != "images"}
        found = {**found, "knn": self.knn}
        return {name: float(value) for name, value in found.items() if value is not None and name != "images"}


class Examiner:
    """Measures a student's average, which is what will be released, against its teacher. Every process must call it.

    Args:
        images: Kept out of training, prepared; the same on every process. None: no agreement is measured.
        labelled: Images with labels for k-NN, or None.
        config: Sizes.
        device: Where the module is.
        fit_batches: Some training images; a student without a projector is mapped linearly into the teacher's space by
            ridge regression on them.
        autocast: Precision of the forward passes.

    Raises:
        DataError: `labelled` has no labels.
    """

    def __init__(
        self,
        images: Float[Tensor, "B 3 S S"] | None,
        labelled: Source | None,
        *,
        config: EvaluationConfig,
        device: torch.device,
        fit_batches: Callable[[], Iterable[Batch]],
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        if labelled is not None and labelled.labels is None:
            raise DataError(
                "evaluation.labelled has no labels: give a folder per class, or a dataset with a column of classes."
            )
        self.images = images
        self.labelled = labelled
        self.config = config
        self.device = device
        self.fit_batches = fit_batches
        self.autocast = autocast
        self.teacher: Tokens | None = None
        self.further = FurtherAgreement(images, device, autocast)

    def __call__(self, distillation: Distillation) -> StudentMetrics:
        """Measure the average as it is now."""
        knn = self.knn(distillation.ema)
        if self.images is None:
            return StudentMetrics(None, knn, None)
        teacher = self.teacher_tokens(distillation)
        student, projected = self._student_tokens(distillation, self.images)
        found, further = agreement(student, projected, teacher), self.further(distillation)
        score = mean_score(distillation, [found, *further.values()])
        return StudentMetrics(found, knn, projected.patches.cpu(), further, score)

    def score(self, distillation: Distillation) -> float:
        """The average's agreement with its teacher in one number, as it is now; there must be images.

        With several teachers the mean over them, weighted as their losses are.
        """
        assert self.images is not None
        found = agreement(*self._student_tokens(distillation, self.images), self.teacher_tokens(distillation))
        return mean_score(distillation, [found, *self.further(distillation).values()])

    def knn(self, branch: Branch) -> float | None:
        """Accuracy of k-NN on a branch's class tokens, leave-one-out; None without labelled images."""
        if self.labelled is None:
            return None
        size = self.config.labelled_size or self.config.size
        found = class_features(BranchEncoder(branch, self.device, self.autocast), self.labelled, size=size)
        assert found.labels is not None
        return next(iter(knn_leave_one_out(found.features, found.labels, k=(KNN_K,)).values()))

    def teacher_tokens(self, distillation: Distillation) -> Tokens:
        """The teacher's tokens of the held-out images, computed once: it is frozen."""
        assert self.images is not None
        if self.teacher is None:
            encode = BranchEncoder(distillation.teacher, self.device, self.autocast)
            self.teacher = Tokens.cat([encode(part) for part in self.images.split(BATCH)])
        return self.teacher

    def _student_tokens(self, distillation: Distillation, images: Tensor) -> tuple[Tokens, Tokens]:
        """The average's own tokens, and the same in the teacher's space."""
        encode = BranchEncoder(distillation.ema, self.device, self.autocast)
        outputs = [encode.output(part) for part in images.split(BATCH)]
        own = Tokens.cat([output.tokens[0] for output in outputs])
        if isinstance(distillation.objective, FeaturesObjective):
            projected = Tokens.cat([output.projected[0] for output in outputs if output.projected is not None])
            return own, distillation.objective.in_teacher_space(projected)
        with self.autocast():
            maps = fit_maps(distillation.ema, distillation.teacher, self.fit_batches(), device=self.device)
        return own, maps(own)


def load_images(source: Source, size: int) -> Float[Tensor, "B 3 S S"]:
    """Prepare a source's images for measuring: short side resized, centre crop, ImageNet statistics."""
    return torch.stack([eval_image(decode(source.read(i)), size) for i in range(len(source))])
