"""Whether the fused kernel works on a device, and cut how, by a try on it: that Triton imports proves nothing."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov2_zoo.objectives.column_sums import column_log_sums
from dinov2_zoo.objectives.cross_entropy import chunked_cross_entropy
from dinov2_zoo.objectives.kernels.attend import Tile
from dinov2_zoo.objectives.kernels.fused import fused_column_log_sums, fused_cross_entropy
from dinov2_zoo.objectives.targets import Targets

LOGGER = logging.getLogger(__name__)

# Largest first: a program with more queries reads all keys fewer times. What does not fit a chip's shared memory is
# refused by Triton before it runs. `tests/objectives/test_kernels.py` compiles them at a width of 256: the first of
# each list fits an H100, the first of fp32 and the second of bf16 an A100, without spilling registers; in fp32, 128
# queries spilled. Not timed: none of this has run on a GPU.
TILES = {
    torch.float32: [
        Tile(64, 32, 8, 2),
        Tile(64, 32, 8, 1),
        Tile(32, 32, 4, 1),
        Tile(16, 16, 4, 1),
    ],
    torch.bfloat16: [
        Tile(128, 64, 8, 2),
        Tile(64, 64, 8, 2),
        Tile(64, 32, 8, 1),
        Tile(32, 32, 4, 1),
        Tile(16, 16, 4, 1),
    ],
}
"""By what goes into products."""

TOLERANCE = {torch.float32: 3e-3, torch.bfloat16: 3e-2}
"""Of gradients, relative; a few times what rounding to TF32 and to bf16 does at a temperature of 0.04."""


def tile_for(device: torch.device, width: int, dtype: torch.dtype) -> Tile | None:
    """The first of `TILES` that works; None where none does.

    Args:
        device: Where.
        width: Of bottlenecks, padded.
        dtype: What goes into products.
    """
    return next((tile for tile in TILES[dtype] if works(tile, device, width, dtype)), None)


def works(tile: Tile, device: torch.device, width: int, dtype: torch.dtype) -> bool:
    """Try loss, gradients and Sinkhorn-Knopp's sums on a small problem, against chunks in float64 on the CPU."""
    try:
        # The first call may come from an evaluation, and the answer holds for training too.
        with torch.inference_mode(False), torch.enable_grad():
            generator = torch.Generator().manual_seed(0)
            z, w, y, v = (F.normalize(torch.randn(n, width, generator=generator), dim=1) for n in (150, 210, 150, 210))
            bias = torch.randn(210, generator=generator)
            pairs = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
            found = _results([t.to(device) for t in (z, w, y, v, bias, pairs)], tile, dtype)
            expected = _results([t.double() for t in (z, w, y, v, bias, pairs)], None, dtype)
            return all(
                (mine.cpu() - theirs).norm() < TOLERANCE[dtype] * theirs.norm()
                for mine, theirs in zip(found, expected, strict=True)
            )
    except Exception:
        # Triton and the driver refuse a device, a tile or a data type with whatever class their layer uses.
        LOGGER.debug("%s does not work", tile, exc_info=True)
        return False


def _results(problem: list[Tensor], tile: Tile | None, dtype: torch.dtype) -> list[Tensor]:
    """Loss, gradients and column sums; in chunks where there is no tile."""
    z, w, y, v, bias, pairs = problem
    views, w = z.unflatten(0, (len(pairs), -1)).requires_grad_(), w.requires_grad_()
    targets = Targets(y, v, bias, 0.04)
    if tile is None:
        loss = chunked_cross_entropy(views, w, targets, pairs, temperature=0.1)
        sums = [column_log_sums(y, v, log_u, temperature=0.04) for log_u in (None, bias)]
    else:
        loss = fused_cross_entropy(views, w, targets, pairs, temperature=0.1, weights=None, tile=tile, dtype=dtype)
        sums = [fused_column_log_sums(y, v, log_u, temperature=0.04, tile=tile, dtype=dtype) for log_u in (None, bias)]
    return [loss.detach(), *torch.autograd.grad(loss, (views, w)), *sums]
