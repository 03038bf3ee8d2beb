"""Products of tokens with prototypes, the fastest way that works: the fused kernel on CUDA, else in chunks."""

import functools
import importlib.util
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.models.heads import PrototypeHead
from dinov2_zoo.objectives.column_sums import column_log_sums as chunked_column_log_sums
from dinov2_zoo.objectives.cross_entropy import chunked_cross_entropy
from dinov2_zoo.objectives.precision import product_dtype
from dinov2_zoo.objectives.targets import Targets

if TYPE_CHECKING:
    from dinov2_zoo.objectives.kernels.attend import Tile


def cross_entropy(
    views: Float[Tensor, "V B d"],
    prototypes: Float[Tensor, "K d"],
    targets: Targets,
    pairs: Float[Tensor, "V G"],
    *,
    temperature: float,
    weights: Float[Tensor, " B"] | None = None,
    chunk: int = 4096,
) -> Float[Tensor, ""]:
    """`plain_cross_entropy`, which explains the arguments; gradients reach the student only.

    Args:
        views: As there.
        prototypes: As there.
        targets: As there.
        pairs: As there.
        temperature: As there.
        weights: As there.
        chunk: The student's tokens at a time, where it is done in chunks.
    """
    problem = (views, prototypes, targets, pairs)
    tile = _ready(views, max(views.shape[-1], targets.bottleneck.shape[-1]))
    if tile is None:
        return chunked_cross_entropy(*problem, temperature=temperature, weights=weights, chunk=chunk)
    from dinov2_zoo.objectives.kernels.fused import fused_cross_entropy

    dtype = product_dtype()
    return fused_cross_entropy(*problem, temperature=temperature, weights=weights, tile=tile, dtype=dtype)


def column_log_sums(
    bottleneck: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "K d"],
    log_u: Float[Tensor, " K"] | None,
    *,
    temperature: float,
    chunk: int = 4096,
) -> Float[Tensor, " K"]:
    """What an iteration of Sinkhorn-Knopp wants to know (`column_sums.py` explains it and the arguments).

    Args:
        bottleneck: As there.
        prototypes: As there.
        log_u: As there.
        temperature: As there.
        chunk: Tokens at a time, where it is done in chunks.
    """
    tile = _ready(bottleneck, bottleneck.shape[-1])
    if tile is None:
        return chunked_column_log_sums(bottleneck, prototypes, log_u, temperature=temperature, chunk=chunk)
    from dinov2_zoo.objectives.kernels.fused import fused_column_log_sums

    dtype = product_dtype()
    return fused_column_log_sums(bottleneck, prototypes, log_u, temperature=temperature, tile=tile, dtype=dtype)


def prepare(module: nn.Module, device: torch.device, dtype: torch.dtype) -> str | None:
    """Try the kernel before the first step, and say what was chosen; None where there is nothing to choose.

    Args:
        module: With all the heads whose bottlenecks will meet prototypes.
        device: Where losses will be computed.
        dtype: In which networks compute.
    """
    heads = [child for child in module.modules() if isinstance(child, PrototypeHead)]
    if device.type != "cuda" or not heads:
        return None
    dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    tiles = {width: _tile(device, width, dtype) for width in sorted({head.width for head in heads})}
    ways = [f"{w} wide in chunks, as the fused kernel does not work here" for w, tile in tiles.items() if tile is None]
    ways += [f"{w} wide by the fused kernel ({tile})" for w, tile in tiles.items() if tile is not None]
    return f"Prototype losses: {'; '.join(ways)}."


def _ready(tokens: Tensor, width: int) -> "Tile | None":
    """How the fused kernel is to be cut for these tokens; None: take chunks."""
    if tokens.device.type != "cuda" or tokens.dtype != torch.float32 or not tokens.numel():
        return None
    return _tile(tokens.device, width, product_dtype())


@functools.cache
def _tile(device: torch.device, width: int, dtype: torch.dtype) -> "Tile | None":
    # Triton comes with torch's builds for CUDA on Linux; elsewhere there is nothing to try.
    if importlib.util.find_spec("triton") is None:
        return None
    from dinov2_zoo.objectives.kernels.choice import tile_for

    return tile_for(device, width, dtype)
