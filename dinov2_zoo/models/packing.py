"""Sequence packing: crops of every size in one row of tokens, so that linear layers run once (paper, section 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value [total, heads, head_dim]) of one row -> [total, heads, head_dim]."""


@dataclass(frozen=True)
class Packing:
    """How a row of tokens divides into groups of equally long sequences.

    Linear layers, norms and LayerScale act on the row and need none of this; attention stays inside each sequence.
    """

    groups: tuple[tuple[int, int], ...]
    """(sequences, tokens per sequence) of each group, in order."""
    attend: Attend | None = field(default=None, compare=False, repr=False)
    """Attention over such rows as a whole (`attention.prepare`); None: group by group."""

    @staticmethod
    def of(groups: Sequence[Float[Tensor, "_ _ D"]]) -> "Packing":
        """The packing of some groups of sequences."""
        return Packing(tuple((g.shape[0], g.shape[1]) for g in groups))

    def pack(self, groups: Sequence[Float[Tensor, "_ _ D"]]) -> Float[Tensor, "total D"]:
        """Lay groups end to end; a single group is only viewed."""
        rows = [g.flatten(0, 1) for g in groups]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def unpack(self, row: Float[Tensor, "total ..."]) -> list[Float[Tensor, "_ _ ..."]]:
        """Views of a row as its groups."""
        parts = row.split([batch * tokens for batch, tokens in self.groups])
        return [part.unflatten(0, group) for part, group in zip(parts, self.groups, strict=True)]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of every sequence, in order."""
        return [tokens for batch, tokens in self.groups for _ in range(batch)]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(tokens for _, tokens in self.groups)
