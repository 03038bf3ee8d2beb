"""What networks hand to losses and measurements: tokens, and all that a branch computes from them.

Both are registered with torch's pytrees: FSDP looks for tensors in a module's outputs, and older versions of it do not
look into other dataclasses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.export import register_dataclass


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
    def cat(parts: Sequence["Tokens"]) -> "Tokens":
        """Tokens of several batches as one."""
        return Tokens(torch.cat([p.class_token for p in parts]), torch.cat([p.patches for p in parts]))


@dataclass(frozen=True)
class HeadOutput:
    """Tokens in a head's bottleneck, and the prototypes that they meet in the losses."""

    bottleneck: Float[Tensor, "*tokens d"]
    """Unit vectors."""
    prototypes: Float[Tensor, "K d"]


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


for kind in (Tokens, HeadOutput, BranchOutput):
    register_dataclass(kind)
