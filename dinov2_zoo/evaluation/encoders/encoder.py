"""What an evaluation asks of a model: images in, class token, registers and patch map of any block out."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.evaluation.record import checksum
from dinov2_zoo.models.tokens import Tokens
from dinov2_zoo.weights.fingerprint import weights_fingerprint


@dataclass(frozen=True)
class Layer:
    """What one block makes of a batch of images, fp32."""

    class_token: Float[Tensor, "B D"]
    registers: Float[Tensor, "B R D"]
    """R may be 0."""
    patches: Float[Tensor, "B D h w"]
    """The patch tokens as the map that they are."""


class Encoder(Protocol):
    """A frozen model as most evaluations see it."""

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Tokens of normalised images, on the model's device; no gradient."""
        ...


class LayeredEncoder(Encoder, Protocol):
    """A frozen model that also shows what its blocks make."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        ...

    @property
    def dim(self) -> int:
        """Width of every token."""
        ...

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels; image sides must be multiples of it."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        ...

    def fingerprint(self) -> str:
        """Tells these weights from any others."""
        ...

    def layers(self, images: Float[Tensor, "B 3 H W"], blocks: Sequence[int], *, norm: bool) -> list[Layer]:
        """What some blocks make of normalised images, in the order asked for; no gradient.

        Args:
            images: H and W multiples of the patch, square or not.
            blocks: Their numbers, from 0.
            norm: Apply the final norm to each.

        Raises:
            ConfigError: There is no such block.
        """
        ...


class BackboneEncoder:
    """Encoder of any of our backbones: `VisionTransformer`, `Dinov2Model`; without `layers` also `TimmStudent`.

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

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.backbone.blocks)  # pyright: ignore[reportArgumentType]

    @property
    def dim(self) -> int:
        """Width of every token."""
        return int(self.backbone.embed_dim)  # pyright: ignore[reportArgumentType]

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels."""
        return int(self.backbone.patch_size)  # pyright: ignore[reportArgumentType]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.backbone.parameters()).device

    def fingerprint(self) -> str:
        """Tells these weights from any others."""
        return fingerprint(self.backbone)

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Tokens of normalised images [B, 3, H, W], moved to the backbone's device."""
        features = self._run(self.backbone.forward_features, images)  # pyright: ignore[reportArgumentType]
        return Tokens(features["x_norm_clstoken"].float(), features["x_norm_patchtokens"].float())

    def layers(self, images: Float[Tensor, "B 3 H W"], blocks: Sequence[int], *, norm: bool) -> list[Layer]:
        """See `LayeredEncoder.layers`."""
        check_blocks(blocks, self.depth)
        tokens = self._run(self.backbone.intermediate_tokens, images, blocks, norm=norm)  # pyright: ignore[reportArgumentType]
        first = 1 + int(self.backbone.num_registers)  # pyright: ignore[reportArgumentType]
        return [layer_of(tokens[block].float(), first, images.shape[-2] // self.patch_size) for block in blocks]

    @torch.no_grad()  # not inference_mode: its tensors could not be used to train a probe
    def _run(self, function: Callable[..., Any], images: Tensor, *args: object, **options: object) -> Any:
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            with self.autocast():
                return function(images.to(self.device, non_blocking=True), *args, **options)
        finally:
            self.backbone.train(was_training)


def fingerprint(network: nn.Module) -> str:
    """Fingerprint of a network: its weights and its class, for other libraries give their networks the same names."""
    return checksum([type(network).__name__, weights_fingerprint(network.state_dict())])


def layer_of(tokens: Float[Tensor, "B T D"], first: int, rows: int) -> Layer:
    """A row of tokens taken apart: class token, registers, map.

    Args:
        tokens: Class token, registers, patches in row-major order.
        first: Tokens before the patches, at least the class token.
        rows: Height of the map, patches.
    """
    patches = tokens[:, first:].transpose(1, 2).unflatten(2, (rows, -1))
    return Layer(tokens[:, 0], tokens[:, 1:first], patches.contiguous())


def check_blocks(blocks: Sequence[int], depth: int) -> None:
    """See that a model has the blocks asked for.

    Raises:
        ConfigError: It has not.
    """
    lacking = [block for block in blocks if not 0 <= block < depth]
    if lacking or not blocks:
        raise ConfigError(f"The model has blocks 0 to {depth - 1}, not {lacking}: choose among them.")
