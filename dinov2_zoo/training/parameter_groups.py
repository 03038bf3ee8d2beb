"""Which parameters get which learning rate and weight decay (official `param_groups.py`)."""

import re
from typing import Any

from timm.optim import param_groups_layer_decay
from torch import nn

from dinov2_zoo.config import OptimConfig

# First names of our ViT's parameters that come before its blocks.
_STEM = ("cls_token", "pos_embed", "mask_token", "reg_token", "patch_embed")
# What the official rule decays although it is no matrix of a linear map.
_TOKENS = ("cls_token", "pos_embed", "mask_token", "reg_token", "weight_g")


def parameter_groups(branch: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Group a branch's trainable parameters for AdamW by learning-rate factor, decay factor and last-layer flag.

    Weight decay spares biases, norms and LayerScale; tokens, positions and prototype lengths get it, as officially,
    unless `decay_tokens` is off.
    Learning rate falls by `layer_decay` per block from the end of the backbone, and by `patch_embed_lr` on the patch
    embedding; heads and projector learn at the full rate.

    Args:
        branch: A student with child `backbone` and any others beside it; sharded already, if it is to be.
        config: `layer_decay`, `patch_embed_lr`, `decay_tokens`.

    Returns:
        Groups with `params`, and the keys that `Schedules.apply` reads: `lr_multiplier`, `wd_multiplier`,
        `is_last_layer`. In a fixed order, whatever the process.
    """
    multipliers = _lr_multipliers(branch.get_submodule("backbone"), config.layer_decay)
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in branch.named_parameters():
        if not parameter.requires_grad:
            continue
        lr = multipliers.get(name.removeprefix("backbone."), 1.0) if name.startswith("backbone.") else 1.0
        if re.search(r"(^|\.)patch_embed\.", name):
            lr *= config.patch_embed_lr
        spared = spared_from_decay(name, parameter) or (not config.decay_tokens and name.endswith(_TOKENS))
        key = (lr, 0.0 if spared else 1.0, "last_layer" in name)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr_multiplier": lr, "wd_multiplier": wd, "is_last_layer": is_last}
        for (lr, wd, is_last), parameters in groups.items()
    ]


def spared_from_decay(name: str, parameter: nn.Parameter) -> bool:
    """True for parameters without weight decay: the official rule by name, and every vector.

    In the official networks each vector is a bias, a norm or a LayerScale, so the second half changes nothing there;
    it catches the batch norms of convolutional students, whose names do not say what they are.
    """
    return name.endswith(".bias") or "norm" in name or "gamma" in name or parameter.ndim <= 1


def _lr_multipliers(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Layer-wise factor of each parameter: decay ** (layers after it); empty when decay is off."""
    if decay == 1:
        return {}
    names = [name for name, _ in backbone.named_parameters()]
    for module in backbone.modules():
        if hasattr(module, "group_matcher"):  # a timm network knows its own layers, hierarchical ones too
            timm_groups = param_groups_layer_decay(module, layer_decay=decay)
            by_id = {id(p): float(group["lr_scale"]) for group in timm_groups for p in group["params"]}
            return {name: by_id.get(id(parameter), 1.0) for name, parameter in backbone.named_parameters()}
    blocks = {name: int(match[1]) + 1 for name in names if (match := re.match(r"blocks\.(\d+)\.", name))}
    after = max(blocks.values(), default=0) + 1
    layers = {name: 0 if name.split(".")[0] in _STEM else blocks.get(name, after) for name in names}
    return {name: decay ** (after - layer) for name, layer in layers.items()}
