"""Activation checkpointing: a branch's blocks are recomputed in the backward pass instead of remembered."""

from torch import nn

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.students import TimmStudent
from dinov2_zoo.models.vision_transformer import VisionTransformer


def checkpoint_activations(branch: nn.Module) -> None:
    """Switch it on in the networks of a branch.

    Branches that run without gradients (teacher, average) have no activations to keep, so it is for the student only.

    Raises:
        ConfigError: The branch has no such network, or timm's cannot.
    """
    networks = [network for network in branch.modules() if isinstance(network, VisionTransformer | TimmStudent)]
    if not networks:
        raise ConfigError(
            f"{type(branch).__name__} has no activation checkpointing: set --runtime.activation_checkpointing false."
        )
    for network in networks:
        network.checkpoint_blocks = True
