"""What networks hand to losses and measurements: tokens, and all that a branch computes from them.

Both are registered with torch's pytrees: FSDP looks for tensors in a module's outputs, and older versions of it do not
look into other dataclasses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.export import register_dataclass
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Tokens:
    """Class and patch tokens of some images, after the final norm, without registers.

    Widths are one in our networks and may be two in timm's (a pooled class feature is wider than the map, say).
    """

    class_token: Float[Tensor, "*images C"]
    patches: Float[Tensor, "*images N D"]
    """Row-major grid."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Tokens":
        """The same function of both."""
        return Tokens(function(self.class_token), function(self.patches))

    def __getitem__(self, index: int | slice) -> "Tokens":
        """Tokens of some of the images, by their first dimension."""
        return self.map(lambda tokens: tokens[index])

    @staticmethod
    def cat(parts: Sequence["Tokens"], dim: int = 0) -> "Tokens":
        """Tokens of several batches as one; `dim` is that of the images."""
        return Tokens(torch.cat([p.class_token for p in parts], dim), torch.cat([p.patches for p in parts], dim))


@dataclass(frozen=True)
class HeadOutput:
    """Tokens in a head's bottleneck, and the prototypes that they meet in the losses."""

    bottleneck: Float[Tensor, "*tokens d"]
    """Unit vectors."""
    prototypes: Float[Tensor, "K d"]

    @staticmethod
    def cat(parts: Sequence["HeadOutput"]) -> "HeadOutput":
        """Outputs of one head for several batches, as one."""
        return HeadOutput(torch.cat([p.bottleneck for p in parts], dim=-2), parts[-1].prototypes)


@dataclass(frozen=True)
class BranchOutput:
    """What a branch makes of V views of B images: fp32 or better, whatever the precision of the pass."""

    tokens: Tokens
    """[V, B, D] and [V, B, N, D]."""
    projected: Tokens | None = None
    """The same in the teacher's standardised space, if the branch has a projector."""
    dino: HeadOutput | None = None
    """Class tokens [V, B, d] after their head, if the branch has one."""
    ibot: HeadOutput | None = None
    """Some patch tokens [n, d] after theirs; of global crops only."""
    further: list[Tokens] = field(default_factory=list)
    """Class and patch tokens in the standardised spaces of further teachers, in their order."""

    def without_patches(self) -> "BranchOutput":
        """The same without patch tokens but those behind a head; the class tokens no longer hold on to their memory."""
        own = self.tokens
        return replace(
            self, tokens=Tokens(own.class_token.clone(), own.patches.new_empty(*own.patches.shape[:2], 0, 1))
        )

    @staticmethod
    def cat(parts: Sequence["BranchOutput"]) -> "BranchOutput":
        """What one branch makes of several batches, as of one; patches behind a head are in order of the batches."""
        first = parts[0]
        return BranchOutput(
            Tokens.cat([part.tokens for part in parts], dim=1),
            first.projected and Tokens.cat([part.projected for part in parts if part.projected], dim=1),
            first.dino and HeadOutput.cat([part.dino for part in parts if part.dino]),
            first.ibot and HeadOutput.cat([part.ibot for part in parts if part.ibot]),
            [Tokens.cat(same, dim=1) for same in zip(*(part.further for part in parts), strict=True)],
        )


for kind in (Tokens, HeadOutput, BranchOutput):
    register_dataclass(kind)


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors of an output, or of other nested values, always in the same order."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def joined(parts: Sequence[Sequence[BranchOutput]]) -> list[BranchOutput]:
    """A branch's outputs for several batches, each a list by size of crop, as those for one batch."""
    if len(parts) == 1:
        return list(parts[0])
    return [BranchOutput.cat(same) for same in zip(*parts, strict=True)]
