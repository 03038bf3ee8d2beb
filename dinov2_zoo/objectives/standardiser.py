"""A teacher's tokens at one scale: its channels differ by orders of magnitude, a loss would see only the largest."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.objectives.hadamard import hadamard


class Standardiser(nn.Module):
    """z = rotation (y - mean) / deviation; part of the training state.

    The teacher is frozen, so these are numbers, not something to track: `fit_projector` measures them once, before the
    first step.

    - "channels": no rotation; each channel by its own deviation (after UNIC and RADIO). Channels that hardly vary
      weigh as much as those that tell images apart.
    - "phi-s" (Ranzinger et al. 2024, "PHI-S", section 3): rotation = H U^T, with the principal directions U of the
      tokens' covariance and a Hadamard matrix H. Every channel then has the mean of all variances, and one deviation
      serves them all: distances are those of the teacher's own space, up to that scale.

    Args:
        dim: Width of the tokens.
        kind: Which of the two.

    Raises:
        ConfigError: There is no Hadamard matrix of this width.
    """

    mean: Float[Tensor, " D"]
    deviation: Float[Tensor, " D"]
    rotation: Float[Tensor, "D D"] | None

    def __init__(self, dim: int, kind: Literal["channels", "phi-s"] = "channels") -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))
        self.register_buffer("rotation", hadamard(dim).to(self.mean) if kind == "phi-s" else None)

    @torch.no_grad()
    def set(self, mean: Float[Tensor, " D"], covariance: Float[Tensor, "D D"]) -> None:
        """Take over the statistics of a teacher's tokens, float64."""
        self.mean.copy_(mean)
        if self.rotation is None:
            self.deviation.copy_(covariance.diagonal().clamp(min=1e-12).sqrt())
            return
        # On the CPU: the same signs of the directions on every process.
        _, directions = torch.linalg.eigh(covariance.cpu())
        self.rotation.copy_(hadamard(len(mean)) @ directions.T)
        self.deviation.fill_(covariance.diagonal().mean().clamp(min=1e-12).sqrt())

    def standardise(self, tokens: Float[Tensor, "*some D"]) -> Float[Tensor, "*some D"]:
        """Tokens whose channels have mean 0 and variance 1."""
        centred = tokens - self.mean
        turned = centred if self.rotation is None else centred @ self.rotation.T.to(centred.dtype)
        return turned / self.deviation

    def restore(self, standardised: Float[Tensor, "*some D"]) -> Float[Tensor, "*some D"]:
        """Undo `standardise`."""
        scaled = standardised * self.deviation
        turned = scaled if self.rotation is None else scaled @ self.rotation.to(scaled.dtype)
        return turned + self.mean

    def into(self, weight: Float[Tensor, "D Ds"], bias: Float[Tensor, " D"]) -> tuple[Tensor, Tensor]:
        """Weight and bias of the linear map that ends in standardised tokens, from those of one that ends in tokens."""
        return self.standardise(weight.double().T + self.mean).T.contiguous(), self.standardise(bias.double())

    def out_of(self, weight: Float[Tensor, "D Ds"], bias: Float[Tensor, " D"]) -> tuple[Tensor, Tensor]:
        """Undo `into`."""
        return (self.restore(weight.double().T) - self.mean).T.contiguous(), self.restore(bias.double())
