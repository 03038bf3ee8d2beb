"""Students by name: one of our Vision Transformers, or any network of timm's."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.tokens import Tokens
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import model_config

TIMM = "timm:"


def build_student(name: str, img_size: int) -> "VisionTransformer | TimmStudent":
    """A student with random weights.

    Args:
        name: One of `list_models()`, or "timm:<name>".
        img_size: Side of the global crops, pixels: the patch grid that its positions cover.

    Raises:
        ConfigError: There is no such model, or it does not take such images.
    """
    if name.startswith(TIMM):
        return TimmStudent(name.removeprefix(TIMM), img_size)
    return VisionTransformer(replace(model_config(name), img_size=img_size))


def check_student(name: str) -> None:
    """Raise unless there is such a student; builds nothing.

    Raises:
        ConfigError: There is no such model; the nearest is named.
    """
    if not name.startswith(TIMM):
        model_config(name)
        return
    name = name.removeprefix(TIMM)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()."
        raise ConfigError(f"timm has no model `{name}`: {hint}")


class TimmStudent(nn.Module):
    """A timm network whose outputs bear our names, so that it can be distilled by features.

    Its class feature is what `timm_model(images)` returns with `num_classes=0`: the class token or the pooled map.

    Args:
        name: Any of `timm.list_models()`.
        img_size: Side of the images it will mostly see, pixels.
        net: The network without its classifier, if it is there already, with weights; default: a new one.

    Raises:
        ConfigError: timm has no such model, it does not take images of that side, or it has no square feature map.
    """

    options: dict[str, Any]
    """Arguments of `timm.create_model` that say the image size; none where the network knows no size."""

    def __init__(self, name: str, img_size: int, net: nn.Module | None = None) -> None:
        super().__init__()
        self.name = name
        self.img_size = img_size
        self.net, self.options = (net, {}) if net else _create(name, img_size)
        self._checkpoint_blocks = False
        self.embed_dim = int(self.net.num_features)  # pyright: ignore[reportArgumentType]
        probe = self.try_size(img_size, "set crops.global_size to a size it takes")
        self.class_dim = probe.class_token.shape[-1]

    @property
    def checkpoint_blocks(self) -> bool:
        """Recompute blocks in the backward pass, to save memory; batch norms then see each batch twice.

        Raises:
            ConfigError: On setting it: timm cannot do that with this network.
        """
        return self._checkpoint_blocks

    @checkpoint_blocks.setter
    def checkpoint_blocks(self, recompute: bool) -> None:
        if recompute == self._checkpoint_blocks:
            return
        try:
            self.net.set_grad_checkpointing(recompute)  # pyright: ignore[reportCallIssue]
        except (AttributeError, AssertionError) as error:
            raise ConfigError(
                f"timm cannot recompute the blocks of {self.name}: set runtime.activation_checkpointing to false, and "
                "a smaller batch or optim.accumulate if memory is short."
            ) from error
        self._checkpoint_blocks = recompute

    def try_size(self, size: int, remedy: str) -> Tokens:
        """Tokens of one image of `size` pixels, all zero.

        Raises:
            ConfigError: The network does not take such images; ends with `remedy`.
        """
        self.net.eval()
        try:
            with torch.no_grad():
                return self.tokens([torch.zeros(1, 3, size, size)])[0]
        except (RuntimeError, AssertionError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{self.name} does not take images of {size} pixels ({error}): {remedy}.") from error
        finally:
            self.net.train()

    @overload
    def forward_features(self, x: Tensor) -> dict[str, Any]: ...
    @overload
    def forward_features(self, x: Sequence[Tensor]) -> list[dict[str, Any]]: ...
    def forward_features(self, x: Tensor | Sequence[Tensor]) -> dict[str, Any] | list[dict[str, Any]]:
        """As `VisionTransformer.forward_features`: x_norm_clstoken [B, class_dim] and x_norm_patchtokens [B, N, D]."""
        found = [
            {"x_norm_clstoken": tokens.class_token, "x_norm_patchtokens": tokens.patches}
            for tokens in self.tokens([x] if isinstance(x, Tensor) else x)
        ]
        return found[0] if isinstance(x, Tensor) else found

    def tokens(self, groups: Sequence[Float[Tensor, "_ 3 _ _"]]) -> list[Tokens]:
        """Tokens of groups of images, one group after the other: [B, class_dim] and [B, N, D]."""
        return [self._tokens(images) for images in groups]

    def _tokens(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        features = self.net.forward_features(images)  # pyright: ignore[reportCallIssue]
        if not isinstance(features, Tensor):
            raise ConfigError(f"{self.name} has several feature maps: choose a network with one.")
        class_token: Tensor = self.net.forward_head(features, pre_logits=True)  # pyright: ignore[reportCallIssue]
        return Tokens(class_token, self._patches(features))

    def _patches(self, features: Tensor) -> Float[Tensor, "B N D"]:
        """The feature map as a row-major square grid of tokens, prefix tokens left out."""
        if features.ndim == 3:
            prefix: int = getattr(self.net, "num_prefix_tokens", 0)
            features = features[:, prefix:]
        elif features.shape[1] == self.embed_dim:  # [B, D, h, w]
            features = features.flatten(2).transpose(1, 2)
        else:  # [B, h, w, D]
            features = features.flatten(1, 2)
        if math.isqrt(features.shape[1]) ** 2 != features.shape[1]:
            raise ConfigError(f"{self.name} has no square feature map: choose a network whose map is a grid.")
        return features

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """The class feature."""
        return self._tokens(x).class_token


def _create(name: str, img_size: int) -> tuple[nn.Module, dict[str, Any]]:
    """The network with random weights and no classifier, and what says its image size where it has one."""
    check_student(TIMM + name)
    # Transformers have positions for one size and may resample them; convolutional networks know no size.
    for options in ({"img_size": img_size, "dynamic_img_size": True}, {"img_size": img_size}, {}):
        try:
            return timm.create_model(name, pretrained=False, num_classes=0, **options), options  # pyright: ignore[reportArgumentType]
        except TypeError:  # this family does not know the option
            continue
        except (AssertionError, ValueError) as error:
            raise ConfigError(
                f"{name} does not take images of {img_size} pixels ({error}): set crops.global_size to a size it takes."
            ) from error
    raise ConfigError(f"timm cannot build {name} without weights: choose another student.")
