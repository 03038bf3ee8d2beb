"""Many linear probes trained at once: all that read the same features are one wide matrix, with a rate for each.

A probe's gradient does not depend on the other probes, so the grid gives what separate trainings would, in the time
of few matrix products. The gradient of cross-entropy is written by hand, for there is nothing before it to flow into.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.training.distributed import DistributedContext


class ProbeGrid:
    """Linear classifiers for several inputs, each with several learning rates; SGD with momentum 0.9 (official).

    Args:
        widths: Width of each input, by name.
        classes: Number of classes.
        rates: Peak learning rates of the grid, by which probes are named.
        scale: Times which they are used.
        generator: Of the starting weights, N(0, 0.01); biases start at 0 (official).
        device: Where the probes are.
        dtype: Of weights and all that is computed.
    """

    momentum = 0.9

    def __init__(
        self,
        widths: Mapping[str, int],
        classes: int,
        rates: tuple[float, ...],
        generator: torch.Generator,
        scale: float = 1.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.classes, self.rates = classes, rates
        self.names = [f"{name}/lr{rate:g}" for name in widths for rate in rates]
        rows = len(rates) * classes
        # The last column is the bias, which reads a 1.
        self.weights = {
            name: torch.cat([0.01 * torch.randn(rows, width, generator=generator), torch.zeros(rows, 1)], 1).to(
                device, dtype
            )
            for name, width in widths.items()
        }
        self.velocities = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self._row_rates = (scale * torch.tensor(rates, device=device, dtype=dtype)).repeat_interleave(classes)[:, None]

    def logits(self, inputs: Mapping[str, Float[Tensor, "B W"]]) -> Float[Tensor, "B P C"]:
        """Of every probe, in the order of `names`."""
        return torch.cat([self._scores(name, _with_one(inputs[name], w)) for name, w in self.weights.items()], 1)

    def _scores(self, name: str, x: Float[Tensor, "B W1"]) -> Float[Tensor, "B G C"]:
        return (x @ self.weights[name].T).unflatten(1, (-1, self.classes))

    def step(
        self,
        inputs: Mapping[str, Float[Tensor, "B W"]],
        labels: Int64[Tensor, " B"],
        factor: float,
        processes: DistributedContext | None = None,
    ) -> None:
        """One step of SGD on each probe's mean cross-entropy.

        Args:
            inputs: Features, by input.
            labels: Their classes.
            factor: Scales all rates, as the schedule wants.
            processes: Average the gradients over them.
        """
        rows = torch.arange(len(labels), device=labels.device)
        for name, weight in self.weights.items():
            x, velocity = _with_one(inputs[name], weight), self.velocities[name]
            error = self._scores(name, x).softmax(2)  # softmax - one-hot is the gradient at the logits
            error[rows, :, labels] -= 1
            error = error.flatten(1)
            if processes is None or processes.world_size == 1:  # the same in one product
                velocity.addmm_(error.T, x, beta=self.momentum, alpha=1 / len(labels))
            else:
                gradient = processes.sum(error.T @ x).div_(len(labels) * processes.world_size)
                velocity.mul_(self.momentum).add_(gradient)
            weight.addcmul_(velocity, self._row_rates, value=-factor)

    def dead(self) -> list[str]:
        """Probes whose weights are no longer finite: their rate was too high."""
        alive = [
            torch.isfinite(weight).unflatten(0, (-1, self.classes)).flatten(1).all(1)
            for weight in self.weights.values()
        ]
        return [name for name, fine in zip(self.names, torch.cat(alive).tolist(), strict=True) if not fine]

    def state(self) -> dict[str, Tensor]:
        """All that a resumed training needs."""
        return {f"weight.{name}": tensor for name, tensor in self.weights.items()} | {
            f"velocity.{name}": tensor for name, tensor in self.velocities.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """The opposite of `state`."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def _with_one(x: Float[Tensor, "B W"], like: Tensor) -> Float[Tensor, "B W1"]:
    """Inputs with the 1 that the bias reads."""
    return F.pad(x.to(like), (0, 1), value=1.0)


def cosine_factor(step: int, steps: int) -> float:
    """Of the rates at a step: from 1 to 0 by a cosine (official)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))
