"""The Vision Transformer of DINOv2: any image size, crops of several sizes at once, Meta's outputs, timm's names."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from jaxtyping import Bool, Float
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinov2_zoo.config import ModelConfig, nearest_multiples
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.attention import prepare
from dinov2_zoo.models.block import Block, LayerNorm
from dinov2_zoo.models.packing import Packing
from dinov2_zoo.models.position import fold_class_position, grid_for, with_class_position
from dinov2_zoo.models.stochastic_depth import Subset
from dinov2_zoo.models.tokens import Tokens

Images = Float[Tensor, "B 3 H W"]
Masks = Bool[Tensor, "B N"]
Groups = Sequence[Float[Tensor, "_ 3 _ _"]]
"""Groups of images, each [B, 3, H, W] with its own B, H and W."""
GroupMasks = Sequence[Bool[Tensor, "_ _"] | None]
"""The masks of each group, [B, N], if it has some."""
Subsets = Sequence[tuple[Subset, Subset]] | None


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to a token."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Images) -> Float[Tensor, "B N D"]:
        """Patch tokens, row-major.

        Raises:
            ConfigError: Height or width is no multiple of the patch.
        """
        for side in images.shape[-2:]:
            if side % self.patch_size:
                raise ConfigError(
                    f"Images of {images.shape[-2]} x {images.shape[-1]} pixels do not divide into patches of "
                    f"{self.patch_size}: resize {side} to {nearest_multiples(side, self.patch_size)}."
                )
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """A plain ViT backbone.

    Parameters bear timm's names, so a state dict is at home in `timm.create_model`; `mask_token` [1, D] is the one
    that timm's models lack. As there, positions cover class and patches in models without registers, and patches
    alone in models with them (their class position is part of the class token).

    Args:
        config: Its shape; see `models/zoo.py` for the named ones.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = self.class_dim = dim = config.embed_dim
        self.patch_size = config.patch_size
        self.num_registers = config.num_registers
        self.checkpoint_blocks = False  # recompute blocks in the backward pass, to save memory
        cells = config.grid_size**2
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, cells if config.num_registers else cells + 1, dim))
        if config.num_registers:
            self.reg_token = nn.Parameter(torch.empty(1, config.num_registers, dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = LayerNorm(dim)
        if not self.cls_token.is_meta:  # torch's random numbers are slow where there are none to draw
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the first weights (official: linear and positions std 0.02, tokens std 1e-6; convolution as torch)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.num_registers:
            nn.init.normal_(self.reg_token, std=1e-6)

    # ---------------------------------------------------------------- tokens in

    def prepare_tokens(self, images: Images, masks: Masks | None = None) -> Float[Tensor, "B T D"]:
        """Tokens [class, registers, patches] with positions; True in `masks` puts the mask token there."""
        rows, columns = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        patches = self.patch_embed(images)
        if masks is not None:
            patches = torch.where(masks.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        cls_token, grid = self.class_token_and_grid()
        patches = patches + grid_for(self.config, grid, rows, columns)
        first = [cls_token, self.reg_token] if self.num_registers else [cls_token]
        # Registers have no position. Under autocast patches come in bf16, but positions are fp32: so are their sum and
        # the residual stream that begins here.
        return torch.cat([*(t.expand(images.shape[0], -1, -1) for t in first), patches], dim=1)

    def class_token_and_grid(self) -> tuple[Float[Tensor, "1 1 D"], Float[Tensor, "1 N D"]]:
        """The class token with its position, and the stored grid of patch positions."""
        if self.num_registers:
            return self.cls_token, self.pos_embed
        return fold_class_position(self.cls_token, self.pos_embed)

    def position_grid(self, side: int) -> Float[Tensor, "1 M D"]:
        """Patch positions for images of side x side patches."""
        return grid_for(self.config, self.class_token_and_grid()[1], side, side)

    @torch.no_grad()
    def set_class_token_and_grid(self, cls_token: Float[Tensor, "1 1 D"], grid: Float[Tensor, "1 N D"]) -> None:
        """Undo `class_token_and_grid`: store a class token that contains its position, and a grid of this size."""
        self.cls_token.copy_(cls_token)
        self.pos_embed.copy_(grid if self.num_registers else with_class_position(grid))

    # ---------------------------------------------------------------- features out

    def packing(self, groups: Groups) -> Packing:
        """How the tokens of some groups of images lie in one row."""
        first, cell = 1 + self.num_registers, self.patch_size
        return Packing(tuple((g.shape[0], first + (g.shape[-2] // cell) * (g.shape[-1] // cell)) for g in groups))

    @overload
    def forward_features(self, x: Tensor, masks: Tensor | None = None) -> dict[str, Any]: ...
    @overload
    def forward_features(
        self, x: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None, subsets: Subsets = None
    ) -> list[dict[str, Any]]: ...
    def forward_features(
        self,
        x: Tensor | Sequence[Tensor],
        masks: Tensor | Sequence[Tensor | None] | None = None,
        subsets: Subsets = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Features of images, or of several groups of images of different sizes in one packed pass.

        Args:
            x: Images [B, 3, H, W], normalised; or a list of such.
            masks: True where a patch is hidden, [B, N] bool; or a list of such; or None.
            subsets: Which sequences run through each block's two branches (`subsets_of`); None: all.

        Returns:
            Meta's names, per group: x_norm_clstoken [B, D], x_norm_regtokens [B, R, D] (R may be 0),
            x_norm_patchtokens [B, N, D], x_prenorm [B, 1 + R + N, D] (before the final norm), masks.
        """
        if isinstance(x, Tensor):
            assert masks is None or isinstance(masks, Tensor)
            return self._forward_groups([x], [masks], subsets)[0]
        return self._forward_groups(x, [None] * len(x) if masks is None else list(masks), subsets)

    def tokens(self, groups: Groups, masks: GroupMasks | None = None, subsets: Subsets = None) -> list[Tokens]:
        """Class and patch tokens of groups of images: `forward_features` for the code of this package."""
        packing, row = self._run_blocks(groups, masks or [None] * len(groups), subsets)
        first = 1 + self.num_registers
        return [Tokens(tokens[:, 0], tokens[:, first:]) for tokens in packing.unpack(self.norm(row))]

    def _forward_groups(self, x: Groups, masks: GroupMasks, subsets: Subsets) -> list[dict[str, Any]]:
        packing, row = self._run_blocks(x, masks, subsets)
        normed, prenorm, first = packing.unpack(self.norm(row)), packing.unpack(row), 1 + self.num_registers
        return [
            {
                "x_norm_clstoken": tokens[:, 0],
                "x_norm_regtokens": tokens[:, 1:first],
                "x_norm_patchtokens": tokens[:, first:],
                "x_prenorm": before,
                "masks": mask,
            }
            for tokens, before, mask in zip(normed, prenorm, masks, strict=True)
        ]

    def _run_blocks(self, x: Groups, masks: GroupMasks, subsets: Subsets) -> tuple[Packing, Float[Tensor, "total D"]]:
        """All tokens in one row after the last block, before the final norm."""
        groups = [self.prepare_tokens(images, mask) for images, mask in zip(x, masks, strict=True)]
        packing = Packing.of(groups)
        row = packing.pack(groups)
        head_dim = self.embed_dim // self.config.num_heads
        packing = prepare(packing, row, head_dim)
        if subsets is not None:  # only attention cares which tokens belong together
            subsets = [(replace(a, packing=prepare(a.packing, row, head_dim)), rest) for a, rest in subsets]
        recompute = self.checkpoint_blocks and torch.is_grad_enabled()
        for block, subset in zip(self.blocks, subsets or [None] * len(self.blocks), strict=True):
            if recompute:  # no block draws random numbers, so there is no state of theirs to restore
                row = checkpoint(block, row, packing, subset, use_reentrant=False, preserve_rng_state=False)
            else:
                row = block(row, packing, subset)
        return packing, row

    def get_intermediate_layers(
        self,
        x: Images,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]:
        """Patch tokens after some of the blocks, in the network's order (Meta's method of this name).

        Args:
            x: Images, normalised.
            n: The last n blocks, or the numbers of blocks, counted from 0.
            reshape: Give [B, D, h, w] instead of [B, N, D].
            return_class_token: Give pairs (patches, class token).
            norm: Apply the final norm to every layer.

        Raises:
            ConfigError: There are no such blocks.
        """
        depth = len(self.blocks)
        wanted = set(range(depth - n, depth)) if isinstance(n, int) else set(n)
        if not wanted or min(wanted) < 0 or max(wanted) >= depth:
            raise ConfigError(
                f"This model has blocks 0 to {depth - 1}: choose n among them, or 1 to {depth} last ones."
            )
        outputs = self.intermediate_tokens(x, sorted(wanted), norm=norm).values()
        patches = [tokens[:, 1 + self.num_registers :] for tokens in outputs]
        if reshape:
            rows = x.shape[-2] // self.patch_size
            patches = [p.transpose(1, 2).unflatten(2, (rows, -1)).contiguous() for p in patches]
        if return_class_token:
            return tuple(zip(patches, (tokens[:, 0] for tokens in outputs), strict=True))
        return tuple(patches)

    def intermediate_tokens(self, x: Images, blocks: Sequence[int], *, norm: bool) -> dict[int, Float[Tensor, "B T D"]]:
        """All tokens after some blocks, by the block's number from 0; no block runs behind the last asked for."""
        tokens = self.prepare_tokens(x)
        packing = Packing.of([tokens])
        row, outputs = packing.pack([tokens]), {}
        for number, block in enumerate(self.blocks[: max(blocks) + 1]):
            row = block(row, packing)
            if number in blocks:
                outputs[number] = packing.unpack(self.norm(row) if norm else row)[0]
        return outputs

    def forward(self, x: Images) -> Float[Tensor, "B D"]:
        """The normed class token."""
        return self.forward_features(x)["x_norm_clstoken"]
