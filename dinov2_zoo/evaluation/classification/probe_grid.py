"""Many linear probes trained at once: all that read the same features are one wide matrix, with a rate for each.

A probe's gradient does not depend on the other probes, so the grid gives what separate trainings would, in the time
of few matrix products. Momentum is linear in the gradient: each probe's rate may stand before its loss instead of
before its update, and one optimizer serves all.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dinov2_zoo.training.distributed import DistributedContext, average_gradients


class ProbeGrid(nn.Module):
    """Linear classifiers for several inputs, each with several learning rates; SGD with momentum 0.9 (official).

    Args:
        widths: Width of each input, by name.
        classes: Number of classes.
        rates: Peak learning rates of the grid, by which probes are named.
        scale: Factor by which they are multiplied.
        generator: Draws the starting weights, N(0, 0.01); biases start at 0 (official).
    """

    _rates: Tensor

    def __init__(
        self,
        widths: Mapping[str, int],
        classes: int,
        rates: tuple[float, ...],
        generator: torch.Generator,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.names = [f"{name}/lr{rate:g}" for name in widths for rate in rates]
        rows = len(rates) * classes
        # The last column is the bias, which reads a 1.
        self.weights = nn.ParameterDict(
            {
                name: torch.cat([0.01 * torch.randn(rows, width, generator=generator), torch.zeros(rows, 1)], 1)
                for name, width in widths.items()
            }
        )
        self.register_buffer("_rates", (scale * torch.tensor(rates)).repeat(len(widths)), persistent=False)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=1.0, momentum=0.9)

    def forward(self, inputs: Mapping[str, Float[Tensor, "B W"]]) -> Float[Tensor, "B P C"]:
        """Logits of every probe, in the order of `names`."""
        scores = [(_with_one(inputs[name], weight) @ weight.T) for name, weight in self.weights.items()]
        return torch.cat([found.unflatten(1, (-1, self.classes)) for found in scores], 1)

    def step(
        self,
        inputs: Mapping[str, Float[Tensor, "B W"]],
        labels: Int64[Tensor, " B"],
        factor: float,
        context: DistributedContext,
    ) -> None:
        """One step of SGD on each probe's mean cross-entropy.

        Args:
            inputs: Features, by input.
            labels: Their classes.
            factor: Scales all rates, as the schedule wants.
            context: Gradients are averaged over its processes.
        """
        logits = self(inputs)
        each = labels[:, None].expand(logits.shape[:2])
        losses = F.cross_entropy(logits.flatten(0, 1), each.flatten(), reduction="none").view_as(each)
        self.optimizer.zero_grad(set_to_none=True)
        (losses.mean(0) @ self._rates).backward()
        average_gradients(self, context)
        self.optimizer.param_groups[0]["lr"] = factor
        self.optimizer.step()

    def dead(self) -> set[str]:
        """Names of the probes whose weights are no longer finite: their rate was too high."""
        alive = [
            torch.isfinite(weight).unflatten(0, (-1, self.classes)).flatten(1).all(1)
            for weight in self.weights.values()
        ]
        return {name for name, fine in zip(self.names, torch.cat(alive).tolist(), strict=True) if not fine}

    def state(self) -> dict[str, Tensor]:
        """All tensors that a resumed training needs."""
        momenta = self.optimizer.state
        return {f"weight.{name}": weight.detach() for name, weight in self.weights.items()} | {
            f"momentum.{name}": momenta[weight]["momentum_buffer"]
            for name, weight in self.weights.items()
            if weight in momenta
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave after a step or more."""
        for name, weight in self.weights.items():
            weight.data.copy_(state[f"weight.{name}"])
            self.optimizer.state[weight]["momentum_buffer"] = state[f"momentum.{name}"].to(weight.device)


def _with_one(x: Float[Tensor, "B W"], like: Tensor) -> Float[Tensor, "B W1"]:
    """Inputs with the 1 that the bias reads."""
    return F.pad(x.to(like), (0, 1), value=1.0)


def cosine_factor(step: int, steps: int) -> float:
    """Factor of the rates at a step: from 1 to 0 by a cosine (official)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))
