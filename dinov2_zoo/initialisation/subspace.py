"""The part of a teacher's residual stream that a narrower stream can hold: its principal directions.

One subspace serves the whole depth, since every block reads from and writes to the same stream (SliceGPT, Ashkboos et
al. 2024).
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.initialisation.ridge import sum_over_processes
from dinov2_zoo.models.heads import at_least_fp32
from dinov2_zoo.models.packing import Packing
from dinov2_zoo.models.vision_transformer import VisionTransformer

CLASS_SHARE = 0.3
"""How much an image's class token counts, against all its patches together; chosen here on the demo."""


@torch.no_grad()
def principal_directions(
    teacher: VisionTransformer,
    width: int,
    batches: Iterable[Float[Tensor, "_ 3 S S"]],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Float[Tensor, "Dt Ds"]:
    """The map from a teacher's stream into a student's of a smaller width, or its own. Every process must call it.

    Layer norm subtracts the mean over channels, so one direction of the student's stream, the constant one, would
    always be lost: the map fills the others with the principal directions of the teacher's normed stream, turned at
    random so that no channel is more important than another.

    Args:
        teacher: Frozen.
        width: The student's.
        batches: This process's share of some images, normalised.
        autocast: Precision of the forward passes.
    """
    wide = teacher.embed_dim
    total = torch.zeros(wide, wide, dtype=torch.float64, device=teacher.cls_token.device)
    for images in batches:
        with autocast():
            tokens = teacher.prepare_tokens(images)
            packing, row = Packing.of([tokens]), tokens.flatten(0, 1)
            for block in teacher.blocks:
                total += _second_moment(row)
                row = block(row, packing)
        # What comes out matters most: the stream's end counts as four blocks, and its class tokens as much again.
        total += 4 * _second_moment(row)
        class_tokens = packing.unpack(row)[0][:, 0]
        total += 4 * CLASS_SHARE * tokens.shape[1] * _second_moment(class_tokens)
    _, directions = torch.linalg.eigh(sum_over_processes(total))  # ascending
    generator = torch.Generator().manual_seed(0)
    turned = torch.cat([torch.ones(width, 1), torch.randn(width, width - 1, generator=generator)], dim=1)
    basis = torch.linalg.qr(turned.double())[0][:, 1:].to(directions.device)
    return (directions[:, 1 - width :] @ basis.T).to(teacher.cls_token.dtype)


def _second_moment(row: Float[Tensor, "total D"]) -> Float[Tensor, "D D"]:
    """Sum of outer products of tokens as layer norm sees them: without their mean, at length 1."""
    row = at_least_fp32(row)
    unit = F.normalize(row - row.mean(1, keepdim=True), dim=1)
    with torch.autocast(row.device.type, enabled=False):  # a covariance in bf16 is worthless
        return (unit.T @ unit).double()
