"""The named models: paper, Table 17, and a tiny one; with 0 or 4 registers."""

import difflib
import re

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import ConfigError

# (embed_dim, depth, num_heads). "ti" is not in the paper: it is the usual ViT-Tiny (DeiT). Table 17 gives ViT-B 18
# blocks by mistake; the released weights and code have 12.
SIZES = {"ti": (192, 12, 3), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "g": (1536, 40, 24)}

RELEASED_SIZE = 518
"""Image side of the position grid in the released weights, pixels."""


def _configuration(size: str, registers: int) -> ModelConfig:
    embed_dim, depth, num_heads = SIZES[size]
    return ModelConfig(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        img_size=RELEASED_SIZE,
        ffn="swiglu" if size == "g" else "mlp",
        num_registers=registers,
        # The released models differ here, see models/position.py.
        position_offset=0.0 if registers else 0.1,
        position_antialias=bool(registers),
    )


MODELS = {
    f"vit{size}14{suffix}": _configuration(size, registers)
    for size in SIZES
    for suffix, registers in (("", 0), ("_reg4", 4))
}


def list_models() -> list[str]:
    """Names of the models of this package, small to large."""
    return list(MODELS)


def model_config(name: str) -> ModelConfig:
    """Shape of a named model.

    Raises:
        ConfigError: There is no such model; the nearest name is given.
    """
    if name not in MODELS:
        near = nearest_model(name)
        hint = f"did you mean `{near}`?" if near else f"use one of {', '.join(MODELS)}."
        raise ConfigError(f"There is no model `{name}`: {hint} (Any timm model: `timm:<name>`.)")
    return MODELS[name]


def nearest_model(name: str) -> str | None:
    """The model that a name was probably meant for: misspelt, or Meta's, timm's or the Hub's name of it.

    Args:
        name: As in "vits41", "dinov2_vitb14_reg", "vit_small_patch14_dinov2.lvd142m", "facebook/dinov2-base".

    Returns:
        A name of `list_models()`; None where none is near.
    """
    words = name.lower().rpartition("/")[2]
    size = re.search(r"giant|large|base|small|tiny", words)
    if "dinov2" in words and size:
        spelt = f"vit{'ti' if size[0] == 'tiny' else size[0][0]}14{'_reg4' if 'reg' in words else ''}"
    else:
        spelt = re.sub(r"_reg$", "_reg4", words.removeprefix("dinov2_"))
    return next(iter(difflib.get_close_matches(spelt, MODELS, n=1, cutoff=0.6)), None)
