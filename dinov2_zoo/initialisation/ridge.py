"""The best linear map from a student's tokens to its teacher's, by ridge regression: no steps, no learning rate.

It is where the projector of features distillation starts, so that gradients teach the student from the first step and
not the projector; and it is the yardstick for students that were trained without one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.models.grid import resample_grid
from dinov2_zoo.models.tokens import BranchOutput, Tokens

Network = Callable[[list[Tensor]], list[BranchOutput]]
"""A `Branch`: groups of crops [V, B, 3, H, W] to outputs."""

# Added to the covariance's diagonal as a share of its mean: chosen here on the demo (see LOG.md).
RIDGE = 0.1


@dataclass(frozen=True)
class LinearMap:
    """y = deviation * (weight x + bias) + mean; the bracket is in standardised teacher channels."""

    weight: Float[Tensor, "Dt Ds"]
    bias: Float[Tensor, " Dt"]
    mean: Float[Tensor, " Dt"]
    """The teacher's, per channel."""
    deviation: Float[Tensor, " Dt"]
    """The teacher's, per channel."""

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


class TokenMaps(NamedTuple):
    """Maps of class tokens and of patch tokens."""

    class_token: LinearMap
    patches: LinearMap

    def __call__(self, tokens: Tokens) -> Tokens:
        """Student tokens in the teacher's space, at its scale; in the maps' precision, then back in the tokens'."""
        exact = tokens.map(Tensor.double)
        mapped = Tokens(self.class_token(exact.class_token), self.patches(exact.patches))
        return mapped.map(lambda x: x.to(tokens.patches.dtype))


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

    def add_alone(self, x: Float[Tensor, "n Ds"]) -> None:
        """Add n tokens that are not to be mapped to anything; for moments whose teacher has no width."""
        self.add(x, x[:, :0])

    def covariance(self) -> tuple[Float[Tensor, " Ds"], Float[Tensor, "Ds Ds"]]:
        """Mean and covariance of the student's tokens over all processes. Every process must call it."""
        n, x, xx = (sum_over_processes(self.sums[name].clone()) for name in ("n", "x", "xx"))
        return x / n, xx / n - torch.outer(x / n, x / n)

    def solve(self, ridge: float) -> LinearMap:
        """The map over the pairs of all processes.

        Args:
            ridge: Added to the diagonal of the student's covariance, as a share of the diagonal's mean.
        """
        sums = {name: sum_over_processes(total.clone()) for name, total in self.sums.items()}
        n = sums["n"]
        x_mean, y_mean = sums["x"] / n, sums["y"] / n
        deviation = (sums["yy"] / n - y_mean.square()).clamp(min=1e-12).sqrt()
        covariance = sums["xx"] / n - torch.outer(x_mean, x_mean)
        covariance.diagonal().add_(ridge * covariance.diagonal().mean() + 1e-12)
        cross = (sums["xy"] / n - torch.outer(x_mean, y_mean)) / deviation
        weight = torch.linalg.solve(covariance, cross).T
        return LinearMap(weight, -weight @ x_mean, y_mean, deviation)


def sum_over_processes(total: Tensor) -> Tensor:
    """Sum of every process's tensor, in place. Every process must call it."""
    if dist.is_initialized():
        dist.all_reduce(total)
    return total


@torch.no_grad()
def fit_maps(
    student: Network, teacher: Network, batches: Iterable[Batch], *, device: torch.device, ridge: float = RIDGE
) -> TokenMaps:
    """Fit the maps of class and patch tokens on the global crops of some batches. Every process must call it.

    Args:
        student: In evaluation mode if it has batch statistics.
        teacher: Frozen.
        batches: This process's share of the images, at least one batch.
        device: Where both are.
        ridge: See `Moments.solve`.

    Returns:
        Maps in float64.
    """
    moments: tuple[Moments, Moments] | None = None
    for batch in batches:
        batch = batch.to(device)
        asked = (student, batch.groups()[:1]), (teacher, batch.for_teacher()[:1])
        mine, theirs = (branch(group)[0].tokens.map(lambda x: x.flatten(0, 1)) for branch, group in asked)
        if moments is None:
            of_class = Moments(mine.class_token.shape[-1], theirs.class_token.shape[-1], device)
            moments = of_class, Moments(mine.patches.shape[-1], theirs.patches.shape[-1], device)
        moments[0].add(mine.class_token, theirs.class_token)
        patches = resample_grid(mine.patches, theirs.patches.shape[1])
        moments[1].add(patches.flatten(0, 1), theirs.patches.flatten(0, 1))
    assert moments is not None, "no batch to fit on"
    return TokenMaps(*(total.solve(ridge) for total in moments))
