"""Many linear probes trained at once: all that read the same features are one wide matrix, with a rate for each.

A probe's gradient does not depend on the other probes, so the grid gives what separate trainings would, in the time
of few matrix products. The gradient of cross-entropy is written by hand, for there is nothing before it to flow into.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int64
from torch import Tensor


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
        found = [
            torch.addmm(weight[:, -1], inputs[name].to(weight), weight[:, :-1].T).unflatten(1, (-1, self.classes))
            for name, weight in self.weights.items()
        ]
        return torch.cat(found, 1)

    def gradients(
        self, inputs: Mapping[str, Float[Tensor, "B W"]], labels: Int64[Tensor, " B"]
    ) -> dict[str, Float[Tensor, "R W1"]]:
        """Of each probe's mean cross-entropy, by input."""
        found: dict[str, Tensor] = {}
        share = 1 / len(labels)
        rows = torch.arange(len(labels), device=labels.device)
        for name, weight in self.weights.items():
            x = inputs[name].to(weight)
            scores = torch.addmm(weight[:, -1], x, weight[:, :-1].T).unflatten(1, (-1, self.classes))
            error = torch.softmax(scores, 2)  # softmax - one-hot
            error[rows, :, labels] -= 1
            error = error.flatten(1).mul_(share)
            found[name] = torch.cat([error.T @ x, error.sum(0)[:, None]], 1)
        return found

    def step(self, gradients: Mapping[str, Float[Tensor, "R W1"]], factor: float) -> None:
        """One step of SGD; `factor` scales all rates, as the schedule wants."""
        for name, weight in self.weights.items():
            velocity = self.velocities[name].mul_(self.momentum).add_(gradients[name])
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


def cosine_factor(step: int, steps: int) -> float:
    """Of the rates at a step: from 1 to 0 by a cosine (official)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))
