"""Activation checkpointing: a branch's blocks are recomputed in the backward pass instead of remembered."""

from typing import Any, cast

from torch import nn

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.vision_transformer import VisionTransformer


def checkpoint_activations(branch: nn.Module) -> None:
    """Switch it on in every network of a branch that can: ours, and timm's by its own method.

    Branches that run without gradients (teacher, average) have no activations to keep, so it is for the student only.

    Raises:
        ConfigError: The branch has no such network, or timm's cannot.
    """
    found = False
    for network in branch.modules():
        if isinstance(network, VisionTransformer):
            network.checkpoint_blocks = found = True
        elif hasattr(network, "set_grad_checkpointing"):
            try:
                cast(Any, network).set_grad_checkpointing(True)
            except AssertionError as error:  # timm's way to say that this family has none
                raise ConfigError(_cannot(network)) from error
            found = True
    if not found:
        raise ConfigError(_cannot(branch))


def _cannot(network: nn.Module) -> str:
    return f"{type(network).__name__} has no activation checkpointing: set --runtime.activation_checkpointing false."
