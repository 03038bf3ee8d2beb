"""The best linear map from a student's tokens to its teacher's, by ridge regression: no steps, no learning rate.

It is where the projector of features distillation starts, so that gradients teach the student from the first step and
not the projector; and it is the yardstick for students that were trained without one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.grid import resample_grid

# Added to the covariance's diagonal as a share of its mean: chosen here on the demo (see LOG.md).
RIDGE = 0.1


@dataclass(frozen=True)
class LinearMap:
    """y = deviation * (weight x + bias) + mean; the bracket is in standardised teacher channels."""

    weight: Float[Tensor, "Dt Ds"]
    bias: Float[Tensor, " Dt"]
    mean: Float[Tensor, " Dt"]
    """Of the teacher's tokens, per channel."""
    deviation: Float[Tensor, " Dt"]
    """Of the teacher's tokens, per channel."""

    def __call__(self, tokens: Float[Tensor, "... Ds"]) -> Float[Tensor, "... Dt"]:
        """Student tokens in the teacher's space, at its scale."""
        return (tokens @ self.weight.T + self.bias) * self.deviation + self.mean

    @torch.no_grad()
    def put_into(self, layer: nn.Linear, *, scaled: bool) -> None:
        """Make a layer this map: at the teacher's scale (`scaled`), or into its standardised channels."""
        if scaled:
            layer.weight.copy_(self.weight * self.deviation[:, None])
            layer.bias.copy_(self.bias * self.deviation + self.mean)
        else:
            layer.weight.copy_(self.weight)
            layer.bias.copy_(self.bias)


class Moments:
    """Running sums of paired tokens, in float64: all that ridge regression needs of any number of them."""

    def __init__(self, student_dim: int, teacher_dim: int, device: torch.device) -> None:
        shapes = {"n": (1,), "x": (student_dim,), "y": (teacher_dim,), "yy": (teacher_dim,)}
        shapes |= {"xx": (student_dim, student_dim), "xy": (student_dim, teacher_dim)}
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}

    def add(self, x: Float[Tensor, "n Ds"], y: Float[Tensor, "n Dt"], weight: Tensor | None = None) -> None:
        """Add n pairs. Products are taken in their own precision, fp32 at least, and summed in float64.

        Args:
            x: Student tokens.
            y: Teacher tokens.
            weight: How much each pair counts, [n]; default 1.
        """
        weight = x.new_ones(len(x)) if weight is None else weight
        with torch.autocast(x.device.type, enabled=False):  # a covariance in bf16 is worthless
            weighted = x * weight[:, None]
            self.sums["n"] += weight.sum()
            self.sums["x"] += weighted.sum(0)
            self.sums["y"] += weight @ y
            self.sums["yy"] += weight @ y.square()
            self.sums["xx"] += weighted.T @ x
            self.sums["xy"] += weighted.T @ y

    def solve(self, ridge: float) -> LinearMap:
        """The map over the pairs of all processes.

        Args:
            ridge: Added to the diagonal of the student's covariance, as a share of the diagonal's mean.
        """
        sums = {name: total.clone() for name, total in self.sums.items()}
        if dist.is_initialized():
            for total in sums.values():
                dist.all_reduce(total)
        n = sums["n"]
        x_mean, y_mean = sums["x"] / n, sums["y"] / n
        deviation = (sums["yy"] / n - y_mean.square()).clamp(min=1e-12).sqrt()
        covariance = sums["xx"] / n - torch.outer(x_mean, x_mean)
        covariance.diagonal().add_(ridge * covariance.diagonal().mean() + 1e-12)
        cross = (sums["xy"] / n - torch.outer(x_mean, y_mean)) / deviation
        weight = torch.linalg.solve(covariance, cross).T
        return LinearMap(weight, -weight @ x_mean, y_mean, deviation)


@torch.no_grad()
def fit_maps(
    student: Branch, teacher: Branch, batches: Iterable[Batch], *, device: torch.device, ridge: float = RIDGE
) -> tuple[LinearMap, LinearMap]:
    """Fit the maps of class and patch tokens on the global crops of some batches. Every process must call it.

    Args:
        student: In evaluation mode if it has batch statistics.
        teacher: Frozen.
        batches: This process's share of the images.
        device: Where both are.
        ridge: See `Moments.solve`.

    Returns:
        (class map, patch map), float64.
    """
    moments: list[Moments] = []
    for batch in batches:
        crops = [batch.global_crops.to(device)]
        mine, theirs = student(crops)[0], teacher(crops)[0]
        pairs = [(mine["class"], theirs["class"]), (mine["patches"], theirs["patches"])]
        pairs = [(x.flatten(0, 1), y.flatten(0, 1)) for x, y in pairs]
        if not moments:
            moments = [Moments(x.shape[-1], y.shape[-1], device) for x, y in pairs]
        for total, (x, y) in zip(moments, pairs, strict=True):
            if x.ndim == 3:
                x, y = resample_grid(x, y.shape[1]).flatten(0, 1), y.flatten(0, 1)
            total.add(x, y)
    class_map, patch_map = (total.solve(ridge) for total in moments)
    return class_map, patch_map
