"""Hadamard matrices: entries 1 and -1, rows orthogonal."""

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.errors import ConfigError


def hadamard(n: int) -> Float[Tensor, "n n"]:
    """The orthogonal matrix H / sqrt(n), float64, for n = 2^k, or 2^k (q + 1) with a prime q = 3 mod 4.

    Sylvester's doubling, from 1 or from Paley's matrix of order q + 1. These cover the widths of all DINOv2 models.

    Raises:
        ConfigError: None of the constructions has this order.
    """
    doublings, core = 0, n
    while core and not (core == 1 or _paley(core)):
        if core % 2:
            raise ConfigError(
                f"PHI-S needs a Hadamard matrix of the teacher's width, and none of {n} is made here: use "
                "--objective.features.standardise channels."
            )
        doublings, core = doublings + 1, core // 2
    matrix = torch.ones(1, 1, dtype=torch.float64) if core == 1 else _paley_matrix(core)
    for _ in range(doublings):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / n**0.5


def _paley(order: int) -> bool:
    """True where `order` is q + 1 with a prime q = 3 mod 4."""
    q = order - 1
    return q % 4 == 3 and all(q % i for i in range(2, int(q**0.5) + 1))


def _paley_matrix(order: int) -> Float[Tensor, "n n"]:
    """I + S, S the skew matrix of squares modulo q (Paley 1933, the first construction)."""
    q = order - 1
    squares = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0, *(1.0 if i in squares else -1.0 for i in range(1, q))], dtype=torch.float64)
    index = torch.arange(q)
    skew = torch.ones(order, order, dtype=torch.float64)
    skew[0, 0], skew[1:, 0] = 0, -1
    skew[1:, 1:] = character[(index[:, None] - index[None]) % q]
    return skew + torch.eye(order, dtype=torch.float64)
