"""How good a student is, whoever trained it: all that `students.py` reports, from an encoder and a folder of pictures.

Nothing here has a setting that was chosen on the pictures it reports: the linear maps are fitted on training photos,
their penalty is chosen on a fifth of those, and the classifiers take fixed numbers.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2_zoo.data.sources import Source, open_source
from dinov2_zoo.evaluation.classification.logistic import fit_logistic, predict
from dinov2_zoo.evaluation.distilled.agreement import agreement
from dinov2_zoo.evaluation.distilled.heldout import load_images
from dinov2_zoo.evaluation.encoders.encoder import Encoder
from dinov2_zoo.initialisation.ridge import LinearMap, Moments, TokenMaps
from dinov2_zoo.models.grid import resample_grid
from dinov2_zoo.models.tokens import Tokens

SIZE = 112  # px, of every picture: the size that all students are trained at
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
NEIGHBOURS = 5  # for classes of 5 to 35 objects
TEMPERATURE = 0.07  # of the vote, as in DINOv2's k-NN
FOLDS = 5
STRENGTH = 0.1  # of the logistic regression, on standardised features


@dataclass(frozen=True)
class Labelled:
    """Pictures with labels; several may show one object."""

    name: str
    images: Tensor
    labels: Tensor
    objects: Tensor

    @classmethod
    def of(cls, folder: Path) -> "Labelled":
        """From folders of <object>@<ground>.jpg, a class each."""
        source = open_source(str(folder))
        assert source.labels is not None
        objects = [source.name(i).rpartition("@")[0] for i in range(len(source))]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(objects))}
        ids = torch.tensor([numbers[name] for name in objects])
        return cls(folder.name.removeprefix("labelled-"), load_images(source, SIZE), torch.tensor(source.labels), ids)


class Judge:
    """Measures encoders on one photo set.

    Args:
        folder: As `photo_sets.py` makes it: train, heldout, labelled-*.
        teacher: What the students were to become.
    """

    def __init__(self, folder: Path, teacher: Encoder) -> None:
        self.folder = folder
        self.teacher = teacher

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """All figures by name; shares are 0..1."""
        found: dict[str, float] = {}
        if encoder is not self.teacher:
            found |= self._agreement(encoder)
        for part in self.labelled:
            features = tokens_of(encoder, part.images).class_token
            found[f"knn/{part.name}"] = knn(features, part)
            found[f"logistic/{part.name}"] = logistic(features, part)
        return found

    @cached_property
    def labelled(self) -> list[Labelled]:
        """The set's labelled folders."""
        return [Labelled.of(path) for path in sorted(self.folder.glob("labelled-*"))]

    @cached_property
    def training(self) -> tuple[Tensor, Tensor]:
        """Training pictures and their mirror images, and a number of the photo that each was cut from."""
        source = open_source(str(self.folder / "train"))
        images = load_images(source, SIZE)
        photos = photo_numbers(source)
        return torch.cat([images, images.flip(-1)]), torch.cat([photos, photos])

    @cached_property
    def heldout(self) -> Tensor:
        """Prepared pictures of photos kept out of training."""
        return load_images(open_source(str(self.folder / "heldout")), SIZE)

    @cached_property
    def teachers(self) -> tuple[Tokens, Tokens]:
        """The teacher's tokens of the training and the held-out pictures."""
        return tokens_of(self.teacher, self.training[0]), tokens_of(self.teacher, self.heldout)

    def _agreement(self, encoder: Encoder) -> dict[str, float]:
        seen, target = self.teachers
        own = tokens_of(encoder, self.heldout)
        mapped = self._maps(tokens_of(encoder, self.training[0]), seen)(own)
        patches = resample_grid(mapped.patches, target.patches.shape[1])
        compared = agreement(own, mapped, target).to_dict()
        return {
            "r2/class": r2(mapped.class_token, target.class_token),
            "r2/patch": r2(patches.flatten(0, 1), target.patches.flatten(0, 1)),
            "r2/mean_patch": r2(patches.mean(1), target.patches.mean(1)),
            **{name: float(value) for name, value in compared.items() if value is not None and name != "images"},
        }

    def _maps(self, own: Tokens, teacher: Tokens) -> TokenMaps:
        """Ridge maps into the teacher's space; of each, the penalty is chosen on every fifth training photo."""
        trial = self.training[1] % 5 == 0
        grid = Tokens(own.class_token, resample_grid(own.patches, teacher.patches.shape[1]))
        return TokenMaps(
            best_map(grid.class_token[:, None], teacher.class_token[:, None], trial),
            best_map(grid.patches, teacher.patches, trial),
        )


def photo_numbers(source: Source) -> Tensor:
    """A number for each picture's photo: names are <photo>-<tile>.jpg."""
    photos = [Path(source.name(i)).stem.rpartition("-")[0] for i in range(len(source))]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(photos))}
    return torch.tensor([numbers[name] for name in photos])


def tokens_of(encoder: Encoder, images: Tensor) -> Tokens:
    return Tokens.cat([encoder(part) for part in images.split(64)])


def best_map(x: Tensor, y: Tensor, trial: Tensor) -> LinearMap:
    """The ridge map of tokens [n, N, D] whose penalty predicts the trial images best, fitted on all."""
    x, y = x.double(), y.double()
    moments = Moments(x.shape[-1], y.shape[-1], x.device)
    moments.add(x[~trial].flatten(0, 1), y[~trial].flatten(0, 1))
    errors = [(moments.solve(ridge)(x[trial]) - y[trial]).square().sum() for ridge in RIDGES]
    moments.add(x[trial].flatten(0, 1), y[trial].flatten(0, 1))
    return moments.solve(RIDGES[int(torch.stack(errors).argmin())])


def r2(predicted: Tensor, target: Tensor) -> float:
    """1 - squared error over squared distance from the mean, both summed over all rows and channels."""
    predicted, target = predicted.double(), target.double()
    return float(1 - (predicted - target).square().sum() / (target - target.mean(0)).square().sum())


def knn(features: Tensor, part: Labelled) -> float:
    """Accuracy of the weighted vote of 5 neighbours, no picture of the same object among them."""
    features = F.normalize(features.float(), dim=1)
    cosine = features @ features.T
    cosine[part.objects[:, None] == part.objects] = -torch.inf
    near, who = cosine.topk(NEIGHBOURS, dim=1)
    classes = F.one_hot(part.labels)[who] * (near / TEMPERATURE).softmax(1)[..., None]
    return float((classes.sum(1).argmax(1) == part.labels).double().mean())


def logistic(features: Tensor, part: Labelled) -> float:
    """Accuracy of logistic regression over five folds of objects, on standardised features."""
    right = torch.zeros(len(features), dtype=torch.bool)
    for fold in range(FOLDS):
        tested = part.objects % FOLDS == fold
        mean, deviation = features[~tested].mean(0), features[~tested].std(0).clamp(min=1e-6)
        x = (features - mean) / deviation
        weights = fit_logistic(x[~tested], part.labels[~tested], int(part.labels.max()) + 1, STRENGTH)
        right[tested] = predict(x[tested], weights).argmax(1) == part.labels[tested]
    return float(right.double().mean())
