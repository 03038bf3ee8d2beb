"""A student that starts from a part of its teacher's weights (Xu et al. 2023, "Initializing Models with Larger Ones").

What is kept is chosen once and used wherever it appears: the same channels of the residual stream in every block, whole
attention heads, the same hidden units on both sides of a feed-forward, and blocks evenly spaced in depth.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int64
from torch import Tensor

from dinov2_zoo.config import ModelConfig
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.vision_transformer import VisionTransformer


def evenly_spaced(available: int, wanted: int) -> Tensor:
    """`wanted` of the numbers 0 .. available - 1, evenly spaced, first and last included: int64 [wanted]."""
    return torch.linspace(0, available - 1, wanted, dtype=torch.float64).round().long()


def channels_of_heads(heads: Int64[Tensor, " h"], width: int) -> Int64[Tensor, " channels"]:
    """Channels, among those of all heads side by side, that belong to some heads of this width."""
    return (heads[:, None] * width + torch.arange(width, device=heads.device)).flatten()


def rows_of_qkv(channels: Int64[Tensor, " c"], dim: int) -> Int64[Tensor, " rows"]:
    """Rows of a packed qkv projection, 3 * dim of them, that make some channels of queries, keys and values."""
    return torch.cat([part * dim + channels for part in range(3)])


def rows_of_hidden(hidden: Int64[Tensor, " h"], config: ModelConfig) -> Int64[Tensor, " rows"]:
    """Rows of a feed-forward's first layer that make some hidden units: one each, or with SwiGLU two."""
    return hidden if config.ffn == "mlp" else torch.cat([hidden, config.ffn_hidden + hidden])


@torch.no_grad()
def select_weights(teacher: VisionTransformer, student: VisionTransformer) -> None:
    """Fill a student with a selection of its teacher's weights, in place.

    Registers that the teacher lacks stay as they were drawn. A teacher of the student's own shape is copied.

    Raises:
        ConfigError: The student is larger, or its patch, feed-forward or head width differs.
    """
    check_fits(teacher, student)
    theirs, mine = teacher.config, student.config
    channels = evenly_spaced(theirs.embed_dim, mine.embed_dim)
    inner = channels_of_heads(evenly_spaced(theirs.num_heads, mine.num_heads), theirs.embed_dim // theirs.num_heads)
    hidden = evenly_spaced(theirs.ffn_hidden, mine.ffn_hidden)

    # Which rows and columns of a block's matrices are kept; vectors follow the rows.
    rows = {"attn.qkv": rows_of_qkv(inner, theirs.embed_dim), "mlp.fc1": rows_of_hidden(hidden, theirs)}
    columns = {"attn.proj": inner, "mlp.fc2": hidden}
    source = {name: tensor.detach() for name, tensor in teacher.state_dict().items()}
    chosen: dict[str, Tensor] = {}
    for number, block in enumerate(evenly_spaced(theirs.depth, mine.depth).tolist()):
        for name in [n for n in source if n.startswith(f"blocks.{block}.")]:
            inside = name.split(".", 2)[2]
            layer = inside.rsplit(".", 1)[0]
            tensor = source[name][rows.get(layer, channels)]
            if tensor.ndim == 2:
                tensor = tensor[:, columns.get(layer, channels)]
            chosen[f"blocks.{number}.{inside}"] = tensor
    chosen |= {name: source[name][channels] for name in source if name.startswith(("patch_embed.", "norm."))}
    for name, parameter in student.named_parameters():
        if "_token" not in name and name != "pos_embed":
            parameter.copy_(chosen.pop(name))
    assert not chosen, "the student has a place for each"
    transfer_tokens(teacher, student, lambda tokens: tokens[..., channels])


@torch.no_grad()
def transfer_tokens(teacher: VisionTransformer, student: VisionTransformer, reduce: Callable[[Tensor], Tensor]) -> None:
    """Fill a student's learnt tokens and positions with its teacher's, the latter resampled to the student's grid.

    Registers that the teacher lacks stay as they are.

    Args:
        teacher: Any width and grid.
        student: Filled in place.
        reduce: Linear map from the teacher's channels, the last dimension, to the student's.
    """
    cls_token, _ = teacher.class_token_and_grid()
    student.set_class_token_and_grid(reduce(cls_token), reduce(teacher.position_grid(student.config.grid_size)))
    student.mask_token.copy_(reduce(teacher.mask_token))
    if student.num_registers and student.num_registers == teacher.num_registers:
        student.reg_token.copy_(reduce(teacher.reg_token))


def check_fits(teacher: VisionTransformer, student: VisionTransformer) -> None:
    """Raise ConfigError unless a student can be cut out of a teacher."""
    theirs, mine = teacher.config, student.config
    too_large = [n for n in ("embed_dim", "depth", "num_heads") if getattr(mine, n) > getattr(theirs, n)]
    if too_large:
        raise ConfigError(
            f"The student is larger than its teacher in {', '.join(too_large)}: take a smaller one, or --init random."
        )
    if (theirs.patch_size, theirs.ffn) != (mine.patch_size, mine.ffn):
        raise ConfigError(
            f"Teacher: patch {theirs.patch_size}, {theirs.ffn}; student: patch {mine.patch_size}, {mine.ffn}: "
            "their weights do not correspond; use --init random."
        )
    if theirs.embed_dim // theirs.num_heads != mine.embed_dim // mine.num_heads:
        raise ConfigError("Teacher and student have heads of different width: use --init random.")
