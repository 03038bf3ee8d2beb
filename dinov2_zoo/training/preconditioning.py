"""AdamW in coordinates in which a network that already knows something learns without forgetting it.

First weights that are fitted to a teacher carry its scales: what a layer writes differs a hundredfold between the first
blocks and the last, the inputs of each layer share a mean that is larger than their deviation, and some directions of
them vary a thousand times more than others. With one rate for all, some layers are undone before others have moved. So

- each linear layer is trained as W x + b = V root (x - mean) + c, whose inputs are centred and white (Natural Neural
  Networks, Desjardins et al. 2015): AdamW moves V and c;
- each tensor moves by a share of its size, the root mean square of its entries (as in LAMB, You et al. 2020).

The network, what it computes and what is saved stay as they are: gradients are turned into those coordinates before the
step, and the step is turned back behind it. Rows are treated apart, so it works on sharded parameters without
communication.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.initialisation.ridge import Moments
from dinov2_zoo.models.heads import at_least_fp32
from dinov2_zoo.training.ema import local_shards

DAMPING = 0.01
"""Added to every direction's variance, as a share of their mean; chosen here (see LOG.md)."""
SMALLEST = 0.02
"""Size that a tensor counts as if it is smaller (the standard deviation of the official first weights)."""
ROWS = 4096
"""Tokens of a batch that are looked at, evenly spaced: neighbours say nearly the same."""


@dataclass(frozen=True)
class White:
    """What makes the inputs of a linear layer white."""

    mean: Float[Tensor, " in"]
    root: Float[Tensor, "in in"]
    """(covariance + damping)^(-1/2)."""


@dataclass(frozen=True)
class Coordinates:
    """Those of a branch, measured before it is sharded."""

    layers: Mapping[str, White]
    """By the layer's name."""
    sizes: Mapping[str, float]
    """Root mean square of every trained tensor's entries, in the coordinates that it is trained in; by its name."""


@torch.no_grad()
def measure_coordinates(
    branch: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Coordinates:
    """Look at what the linear layers of a branch are given. Every process must call it.

    Args:
        branch: A whole `Branch`, not yet sharded.
        batches: This process's share of some training images, at least one batch.
        device: Where the branch is.
        autocast: Precision of the forward passes.
    """
    seen: dict[str, Moments] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            rows = inputs[0].detach().flatten(0, -2)
            rows = at_least_fp32(rows[:: max(1, len(rows) // ROWS)])
            seen.setdefault(name, Moments(rows.shape[1], 0, device)).add_alone(rows)

        return hook

    linear = {name: module for name, module in branch.named_modules() if isinstance(module, nn.Linear)}
    hooks = [module.register_forward_pre_hook(look(name)) for name, module in linear.items()]
    was_training = branch.training
    branch.eval()
    for batch in batches:
        with autocast():
            branch([batch.global_crops.to(device)])
    branch.train(was_training)
    for hook in hooks:
        hook.remove()

    layers: dict[str, White] = {}
    sizes = {name: _size(parameter) for name, parameter in branch.named_parameters() if parameter.requires_grad}
    for name in (name for name in linear if f"{name}.weight" in sizes and name in seen):
        mean, covariance = seen[name].covariance()
        covariance.diagonal().add_(DAMPING * covariance.diagonal().mean() + 1e-12)
        variances, directions = torch.linalg.eigh(covariance)
        root = (directions * variances.clamp(min=1e-12).rsqrt()) @ directions.T
        weight = linear[name].weight
        layers[name] = White(mean.to(weight), root.to(weight))
        # |V|^2 = tr(W covariance W^T), and c is as large as what the layer puts out varies.
        outputs = torch.einsum("oi,ij,oj->o", weight.double(), covariance, weight.double()).mean().sqrt()
        sizes[f"{name}.weight"] = float(outputs) / weight.shape[1] ** 0.5
        if f"{name}.bias" in sizes:
            sizes[f"{name}.bias"] = float(outputs)
    return Coordinates(layers, sizes)


def _size(tensor: Tensor) -> float:
    return max(SMALLEST, float(tensor.double().square().mean().sqrt()))


class Preconditioner:
    """Turns gradients into a branch's coordinates, and steps back out of them.

    Args:
        branch: Sharded already, if it is to be.
        coordinates: Measured before.
    """

    def __init__(self, branch: nn.Module, coordinates: Coordinates) -> None:
        self._parameters = {name: p for name, p in branch.named_parameters() if name in coordinates.sizes}
        self._coordinates = coordinates

    @contextmanager
    @torch.no_grad()
    def around_step(self) -> Generator[None, None, None]:
        """Around the step of an optimizer without weight decay."""
        trained = {name: p for name, p in self._parameters.items() if p.grad is not None}
        weights = dict(zip(trained, local_shards(trained.values()), strict=True))
        grads = dict(zip(trained, local_shards([p.grad for p in trained.values()]), strict=True))  # pyright: ignore[reportArgumentType]
        layers = {name: white for name, white in self._coordinates.layers.items() if f"{name}.weight" in trained}
        for name, white in layers.items():
            grad, of_bias = grads[f"{name}.weight"], grads.get(f"{name}.bias")
            if of_bias is not None:
                grad.addr_(of_bias, white.mean, alpha=-1)
            grad.copy_(grad @ white.root)
        before = [weight.clone() for weight in weights.values()]
        yield
        after, sizes = list(weights.values()), [self._coordinates.sizes[name] for name in trained]
        steps = torch._foreach_sub(after, before)  # pyright: ignore[reportPrivateUsage]
        torch._foreach_mul_(steps, sizes)  # pyright: ignore[reportPrivateUsage]
        named = dict(zip(trained, steps, strict=True))
        for name, white in layers.items():
            step = named[f"{name}.weight"] = named[f"{name}.weight"] @ white.root
            if f"{name}.bias" in named:
                named[f"{name}.bias"] -= step @ white.mean
        for weight, start, step in zip(after, before, named.values(), strict=True):
            torch.add(start, step, out=weight)
