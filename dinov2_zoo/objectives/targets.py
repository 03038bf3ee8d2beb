"""A teacher's target of a token, kept as what it is computed from.

Every way of balancing targets ends on a softmax over prototypes, so each is the same object: the token's bottleneck
vector z, the prototypes w, and one bias per prototype,

    target_k = softmax_k(z . w_k / T + bias_k).

The [tokens, K] matrix of probabilities need never exist as a whole: the losses form it piece by piece.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Distributions over K prototypes for n tokens."""

    bottleneck: Float[Tensor, "n d"]
    """Unit vectors."""
    prototypes: Float[Tensor, "K d"]
    bias: Float[Tensor, " K"]
    """Zero; -centre / T (EMA centring); or log u (Sinkhorn-Knopp)."""
    temperature: float

    def probabilities(self) -> Float[Tensor, "n K"]:
        """The distributions, each row summing to 1."""
        return torch.softmax(torch.addmm(self.bias, self.bottleneck / self.temperature, self.prototypes.T), dim=1)
