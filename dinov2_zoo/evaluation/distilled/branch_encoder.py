"""A branch of a run as an encoder, to be measured between two steps."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.models.branch import Branch
from dinov2_zoo.models.tokens import BranchOutput, Tokens

BATCH = 32
"""Images at a time."""


class BranchEncoder:
    """A branch's backbone as an `Encoder`, sharded or not: it is called through the branch."""

    def __init__(
        self,
        branch: Branch,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.branch = branch
        self.device = device
        self.autocast = autocast

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Tokens of normalised images."""
        return self.output(images).tokens[0]

    @torch.no_grad()
    def output(self, images: Float[Tensor, "B 3 H W"]) -> BranchOutput:
        """All that the branch makes of some images, as its one view; in evaluation mode, as it was afterwards."""
        was_training = self.branch.training
        self.branch.eval()
        try:
            with self.autocast():
                return self.branch([images[None].to(self.device, non_blocking=True)])[0]
        finally:
            self.branch.train(was_training)
