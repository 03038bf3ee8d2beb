"""A student that starts from a part of its teacher's weights (Xu et al. 2023, "Initializing Models with Larger Ones").

What is kept is chosen once and used wherever it appears: the same channels of the residual stream in every block, whole
attention heads, the same hidden units on both sides of a feed-forward, and blocks evenly spaced in depth.
"""

import torch
from torch import Tensor

from dinov2_zoo.errors import ConfigError
from dinov2_zoo.models.position import resample_positions
from dinov2_zoo.models.vision_transformer import VisionTransformer


def evenly_spaced(available: int, wanted: int) -> Tensor:
    """`wanted` of the numbers 0 .. available - 1, evenly spaced, first and last included: int64 [wanted]."""
    return torch.linspace(0, available - 1, wanted, dtype=torch.float64).round().long()


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
    heads = evenly_spaced(theirs.num_heads, mine.num_heads)
    width = theirs.embed_dim // theirs.num_heads
    inner = (heads[:, None] * width + torch.arange(width)).flatten()
    qkv = torch.cat([part * theirs.embed_dim + inner for part in range(3)])
    hidden = evenly_spaced(theirs.ffn_hidden, mine.ffn_hidden)
    expanded = hidden if theirs.ffn == "mlp" else torch.cat([hidden, theirs.ffn_hidden + hidden])

    # Which rows and columns of a block's matrices are kept; vectors follow the rows.
    rows = {"attn.qkv": qkv, "mlp.fc1": expanded}
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
    chosen["mask_token"] = source["mask_token"][:, channels]
    chosen |= _tokens(teacher, student, channels)
    for name, parameter in student.named_parameters():
        if name in chosen:
            parameter.copy_(chosen[name])
    assert chosen.keys() >= {n for n, _ in student.named_parameters()} - {"reg_token"}, "a parameter was forgotten"


def _tokens(teacher: VisionTransformer, student: VisionTransformer, channels: Tensor) -> dict[str, Tensor]:
    """Class token, registers and positions, the latter on the student's grid and in its form."""
    cls_token, positions = teacher.cls_token, teacher.pos_embed
    if not teacher.num_registers:
        # The class position joins the class token, as models with registers have it.
        cls_token, positions = cls_token + positions[:, :1], positions[:, 1:]
    side = student.config.grid_size
    positions = resample_positions(
        positions,
        side,
        side,
        offset=teacher.config.position_offset,
        antialias=teacher.config.position_antialias,
    )
    if not student.num_registers:
        positions = torch.cat([torch.zeros_like(cls_token), positions], dim=1)
    tokens = {"cls_token": cls_token[..., channels], "pos_embed": positions[..., channels]}
    if teacher.num_registers and teacher.num_registers == student.num_registers:
        tokens["reg_token"] = teacher.reg_token[..., channels]
    return tokens


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
