"""What an evaluation asks of a model: images in, class and patch tokens out."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Tokens:
    """Features of a batch of images: fp32, final norm applied, registers left out."""

    class_token: Float[Tensor, "B D"]
    patches: Float[Tensor, "B N D"]
    """Row-major square grid."""


class Encoder(Protocol):
    """A frozen model as evaluations see it."""

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Tokens of normalised images, on the model's device; no gradient."""
        ...


class BackboneEncoder:
    """Encoder of any of our backbones: `VisionTransformer`, `Dinov2Model`, `TimmStudent`.

    The backbone is put into evaluation mode for each call and back afterwards, so a hook may measure it between two
    training steps.

    Args:
        backbone: A module whose `forward_features` returns x_norm_clstoken and x_norm_patchtokens.
        autocast: Makes the context of a forward pass, e.g. `runtime.autocast`; default: none.
    """

    def __init__(
        self, backbone: nn.Module, autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        self.backbone = backbone
        self.autocast = autocast

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Tokens of normalised images [B, 3, H, W], moved to the backbone's device."""
        device = next(self.backbone.parameters()).device
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            with torch.inference_mode(), self.autocast():
                features = self.backbone.forward_features(images.to(device, non_blocking=True))  # pyright: ignore[reportCallIssue]
        finally:
            self.backbone.train(was_training)
        return Tokens(features["x_norm_clstoken"].float(), features["x_norm_patchtokens"].float())
