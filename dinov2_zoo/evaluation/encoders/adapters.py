"""Any model as an encoder: ours in every layout, an untrained twin, timm's networks, transformers' ViTs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.data.augment import seeded
from dinov2_zoo.errors import ConfigError, HubError, first_line
from dinov2_zoo.evaluation.encoders.encoder import (
    BackboneEncoder,
    Layer,
    LayeredEncoder,
    Tokens,
    check_blocks,
    fingerprint,
    layer_of,
)
from dinov2_zoo.hub.model import Dinov2Model
from dinov2_zoo.hub.timm_network import open_timm
from dinov2_zoo.models.zoo import model_config

Autocast = Callable[[], AbstractContextManager[object]]

KINDS = "a name, folder or file that Dinov2Model.from_pretrained reads, untrained:NAME, timm:NAME or transformers:NAME"


def open_encoder(
    source: str, *, device: torch.device | str = "cpu", autocast: Autocast = nullcontext, seed: int = 0
) -> LayeredEncoder:
    """Open a model for evaluation by a line of text.

    Args:
        source: One of
            - all that `Dinov2Model.from_pretrained` reads: a short name, Hub id, folder or file in four layouts;
            - `untrained:vits14_reg4`: that model with random weights, the bottom of every scale;
            - `timm:NAME`: any network of timm's with its weights, also `timm:local-dir:FOLDER`, or `timm:NAME@FILE`
              with weights from a file;
            - `transformers:NAME`: a ViT of transformers' (DINOv2 with and without registers), Hub id or folder.
        device: Where to put it.
        autocast: Precision of its forward passes.
        seed: Of random weights.

    Raises:
        ConfigError: There is no such untrained model, or it is no model with tokens.
        HubError: It cannot be fetched.
        CheckpointError: The weights are not a DINOv2 backbone, whole.
    """
    kind, colon, name = source.partition(":")
    if colon and kind == "timm":
        return TimmEncoder(open_timm(name).to(device), autocast)
    if colon and kind == "transformers":
        return TransformersEncoder(_transformers(name).to(device), autocast)
    if colon and kind == "untrained":
        with seeded(seed):
            model = Dinov2Model(model_config(name)).eval()
        return BackboneEncoder(model.to(device), autocast)
    # Weights that were stored in half precision take no fp32 images without autocast, and fp16 ones not all autocast.
    return BackboneEncoder(Dinov2Model.from_pretrained(source, device=device, dtype=torch.float32), autocast)


class _Foreign:
    """What encoders of other libraries' networks share.

    Args:
        net: In evaluation mode.
        autocast: Precision of its forward passes.
    """

    def __init__(self, net: nn.Module, autocast: Autocast = nullcontext) -> None:
        self.net: Any = net.eval()
        self.autocast = autocast

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device

    def fingerprint(self) -> str:
        """Tells these weights from any others."""
        return fingerprint(self.net)


class TimmEncoder(_Foreign):
    """A network of timm's. Convolutional ones give a class feature and a map, but have no blocks to choose from."""

    @property
    def depth(self) -> int:
        """Number of blocks; 0 for a network that is no Vision Transformer."""
        return len(self.net.blocks) if hasattr(self.net, "num_prefix_tokens") else 0

    @property
    def dim(self) -> int:
        """Width of every token."""
        return int(self.net.num_features)

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels; for other networks how much smaller the map is than the image."""
        if self.depth:
            return int(self.net.patch_embed.patch_size[0])
        return int(self.net.feature_info[-1]["reduction"])

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Tokens of normalised images; the class token is what timm's classifier would see."""
        with self.autocast():
            features = self.net.forward_features(images.to(self.device))
            pooled = self.net.forward_head(features, pre_logits=True)
        if self.depth:
            patches = features[:, self.net.num_prefix_tokens :]
            pooled = features[:, 0] if self.net.num_prefix_tokens else pooled
        elif features.ndim == 4 and features.shape[1] == self.dim:  # [B, D, h, w]
            patches = features.flatten(2).transpose(1, 2)
        else:  # [B, h, w, D]
            patches = features.flatten(1, -2)
        return Tokens(pooled.float(), patches.float())

    @torch.no_grad()
    def layers(self, images: Float[Tensor, "B 3 H W"], blocks: Sequence[int], *, norm: bool) -> list[Layer]:
        """See `LayeredEncoder.layers`.

        Raises:
            ConfigError: Also where the network has no blocks of one width, or no class token.
        """
        if not self.depth or not self.net.num_prefix_tokens:
            raise ConfigError(
                f"{type(self.net).__name__} has no blocks with class and patch tokens: choose a Vision Transformer, "
                "or tasks that need class features only (knn, logistic, retrieval)."
            )
        check_blocks(blocks, self.depth)
        with self.autocast():
            found = self.net.forward_intermediates(
                images.to(self.device),
                indices=sorted(set(blocks)),
                return_prefix_tokens=True,
                norm=norm,
                output_fmt="NLC",
                intermediates_only=True,
            )
        rows = images.shape[-2] // self.patch_size
        by_block = {
            block: layer_of(torch.cat([prefix, patches], 1).float(), prefix.shape[1], rows)
            for block, (patches, prefix) in zip(sorted(set(blocks)), found, strict=True)
        }
        return [by_block[block] for block in blocks]


class TransformersEncoder(_Foreign):
    """A Vision Transformer of transformers' whose embeddings, blocks and final norm bear its usual names."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return int(self.net.config.num_hidden_layers)

    @property
    def dim(self) -> int:
        """Width of every token."""
        return int(self.net.config.hidden_size)

    @property
    def patch_size(self) -> int:
        """Side of a patch, pixels."""
        return int(self.net.config.patch_size)

    @property
    def first(self) -> int:
        """Tokens before the patches."""
        return 1 + int(getattr(self.net.config, "num_register_tokens", 0))

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Tokens of normalised images."""
        with self.autocast():
            tokens = self.net(images.to(self.device)).last_hidden_state.float()
        return Tokens(tokens[:, 0], tokens[:, self.first :])

    @torch.no_grad()
    def layers(self, images: Float[Tensor, "B 3 H W"], blocks: Sequence[int], *, norm: bool) -> list[Layer]:
        """See `LayeredEncoder.layers`."""
        check_blocks(blocks, self.depth)
        with self.autocast():
            # hidden_states[0] is what enters the first block.
            states = self.net(images.to(self.device), output_hidden_states=True).hidden_states
            tokens = [self.net.layernorm(states[block + 1]) if norm else states[block + 1] for block in blocks]
        return [layer_of(found.float(), self.first, images.shape[-2] // self.patch_size) for found in tokens]


def _transformers(name: str) -> nn.Module:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise ConfigError("transformers is not installed: run `pip install transformers`.") from error
    try:
        net = AutoModel.from_pretrained(name, dtype=torch.float32)
    # As above: many kinds, one remedy.
    except Exception as error:
        raise HubError(f"transformers cannot load {name} ({first_line(error)}): check name and network.") from error
    if not hasattr(net, "layernorm") or not hasattr(net.config, "patch_size"):
        raise ConfigError(f"{name} is no Vision Transformer ({type(net).__name__}): evaluate {KINDS}.")
    return net
