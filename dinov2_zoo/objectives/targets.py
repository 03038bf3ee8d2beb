"""A teacher's target of a token, kept as what it is computed from.

Every way of balancing targets ends on a softmax over prototypes, so each is the same object: the token's bottleneck
vector z, the prototypes w, and one bias per prototype,

    target_k = softmax_k(z . w_k / T + bias_k).

The [tokens, K] matrix of probabilities need never exist as a whole; `chunked_cross_entropy` forms it piece by piece.
"""

from dataclasses import dataclass, replace

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

    def __getitem__(self, rows: slice) -> "Targets":
        """Targets of some of the tokens."""
        return replace(self, bottleneck=self.bottleneck[rows])

    def probabilities(self, rows: slice = slice(None)) -> Float[Tensor, "m K"]:
        """The distributions of some tokens, each row summing to 1."""
        logits = self.bottleneck[rows] @ self.prototypes.T
        return torch.softmax(logits / self.temperature + self.bias, dim=1)
