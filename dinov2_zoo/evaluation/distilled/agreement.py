"""How well a student's tokens stand in for its teacher's, on images that neither it nor its projector has seen."""

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.errors import DataError
from dinov2_zoo.models.grid import resample_grid
from dinov2_zoo.models.tokens import Tokens

NEIGHBOURS = 5

# Class-token neighbours are reported from this many images on: among fewer, chance alone finds over a tenth of them.
MIN_IMAGES = 10 * NEIGHBOURS + 1


@dataclass(frozen=True)
class Agreement:
    """Agreement of a student with its teacher; cosines are in the teacher's space, through the projector."""

    class_cosine: float
    """Mean cosine of class tokens."""
    class_cosine_centred: float
    """The same less the teacher's mean class token on both sides: the mean alone gives much of the plain cosine."""
    patch_cosine: float
    """Mean cosine of patch tokens."""
    patch_cosine_centred: float
    """The same after subtracting the teacher's mean patch token from both."""
    patch_neighbours: float
    """Share of a patch's 5 nearest patches in the teacher's space that are among the 5 nearest in the student's own,
    without the projector; over all images at once."""
    class_neighbours: float | None
    """The same for whole images by their class tokens; None below 51 images."""
    images: int
    """Images measured."""

    @property
    def score(self) -> float:
        """All of it in one number, by which averages of one run are compared.

        The mean of both cosines without the mean and of the shared neighbours of patches (chosen here: cosines alone
        may rise while neighbours fall).
        """
        return (self.class_cosine_centred + self.patch_cosine_centred + self.patch_neighbours) / 3

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain numbers, ready for JSON and tables."""
        return dataclasses.asdict(self)


@torch.inference_mode()
def agreement(student: Tokens, projected: Tokens, teacher: Tokens, *, queries: int = 1024, seed: int = 0) -> Agreement:
    """Compare a student's tokens with its teacher's over a set of images.

    Where the student's patch grid has another size, its patches are resampled bilinearly to the teacher's.

    Args:
        student: The student's own tokens, width D.
        projected: The same through the projector, the teacher's width.
        teacher: The teacher's tokens, of the same images in the same order.
        queries: Patches whose neighbours are compared, drawn at random from all; fewer if there are fewer.
        seed: Decides that draw.

    Raises:
        DataError: No images, or too few patches to have 5 neighbours.
    """
    images, patches = teacher.patches.shape[:2]
    if images * patches <= NEIGHBOURS:
        raise DataError(f"{images} held-out images are too few to measure agreement: give more.")
    own = resample_grid(student.patches, patches).flatten(0, 1).float()
    mapped = resample_grid(projected.patches, patches).flatten(0, 1).float()
    target = teacher.patches.flatten(0, 1).float()
    chosen = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))[:queries].to(target.device)
    class_target = teacher.class_token.float()
    everyone = torch.arange(images, device=target.device)
    enough = images >= MIN_IMAGES
    return Agreement(
        *_cosines(projected.class_token.float(), class_target),
        *_cosines(mapped, target),
        patch_neighbours=neighbour_overlap(own, target, chosen),
        class_neighbours=neighbour_overlap(student.class_token, class_target, everyone) if enough else None,
        images=images,
    )


def _cosines(predicted: Tensor, target: Tensor) -> tuple[float, float]:
    """Mean cosine of rows, plain and after removing the target's mean from both."""
    mean = target.mean(0)
    plain = F.cosine_similarity(predicted, target).mean()
    centred = F.cosine_similarity(predicted - mean, target - mean).mean()
    return float(plain), float(centred)


def neighbour_overlap(
    a: Float[Tensor, "n Da"], b: Float[Tensor, "n Db"], queries: Tensor, *, k: int = NEIGHBOURS
) -> float:
    """Mean share of a row's k nearest rows (cosine, itself left out) that two descriptions of the same n things share.

    Args:
        a: One description.
        b: The other; may have another width.
        queries: Numbers of the rows to ask about.
        k: Neighbours; at most n - 1.
    """

    def nearest(x: Tensor) -> Tensor:
        x = F.normalize(x.float(), dim=1)
        cosine = x[queries] @ x.T
        cosine[torch.arange(len(queries), device=x.device), queries] = -torch.inf
        return cosine.topk(k, dim=1).indices

    shared = (nearest(a)[:, :, None] == nearest(b)[:, None, :]).sum()
    return float(shared) / (len(queries) * k)
