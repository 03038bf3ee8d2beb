"""What is said of operations and bytes, against the operations that torch is asked for."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2_zoo.objectives.cross_entropy import chunked_cross_entropy, plain_cross_entropy
from dinov2_zoo.objectives.targets import Targets

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton comes with torch's CUDA builds on Linux only", allow_module_level=True)

from dinov2_zoo.objectives.kernels.attend import Tile
from dinov2_zoo.objectives.kernels.costs import attend_cost, chunked_cost, fused_cost, plain_cost

TOKENS, PROTOTYPES, WIDTH, CHUNK = 24, 50, 4, 8


class Passes(TorchDispatchMode):
    """Counts how many elements of [some, PROTOTYPES] matrices are read and written, and the products' operations."""

    moved = operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        returned = func._schema.returns
        if (
            any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
            or "empty" in func.name()
            or "view" in func.name()
        ):
            return result  # room, or no work at all
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
        for argument in func._schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            self._count(named.get(argument.name), (not argument.is_out) + written)
        for outcome, value in zip(returned, result if isinstance(result, tuple) else (result,), strict=True):
            self._count(value, outcome.alias_info is None)
        if "mm" in func.name():
            a, b = args[-2:]
            self.operations += 2 * a.numel() * b.shape[-1]
        return result

    def _count(self, value, times):
        if isinstance(value, torch.Tensor) and value.numel() % PROTOTYPES == 0 and value.numel() > PROTOTYPES * WIDTH:
            self.moved += times * value.numel()


@pytest.mark.parametrize("way", ["chunked", "plain"])
def test_passes_over_matrices_are_those_that_torch_makes(way):
    generator = torch.Generator().manual_seed(0)
    z, w, y, v = (F.normalize(torch.randn(n, WIDTH, generator=generator), dim=1) for n in (TOKENS, PROTOTYPES) * 2)
    z, w, targets = z[None].requires_grad_(), w.requires_grad_(), Targets(y, v, torch.zeros(PROTOTYPES), 0.07)
    one = torch.ones(1, 1)
    with Passes() as seen:
        if way == "chunked":
            loss = chunked_cross_entropy(z, w, targets, one, temperature=0.1, chunk=CHUNK)
        else:
            loss = plain_cross_entropy(z, w, targets, one, temperature=0.1)
        torch.autograd.grad(loss, (z, w))
    matrix = TOKENS * PROTOTYPES
    cost = plain_cost(TOKENS, PROTOTYPES, WIDTH) if way == "plain" else chunked_cost(TOKENS, PROTOTYPES, WIDTH, CHUNK)
    vectors = 5 * WIDTH * ((TOKENS // CHUNK if way == "chunked" else 1) * PROTOTYPES + TOKENS)
    assert seen.moved / matrix == (cost.memory / 4 - vectors) / matrix


def test_the_kernel_pays_for_whole_tiles_and_twice_the_products_but_for_no_matrix():
    tile = Tile(16, 32, 4, 1)
    assert attend_cost(33, 65, 20, tile, 4).operations == 3 * 3 * 2 * (2 * 16 * 32 * 32)
    assert attend_cost(33, 65, 20, tile, 4, means=False).operations == 3 * 3 * (2 * 16 * 32 * 32)
    fused, chunked = fused_cost(4096, 65536, 256, tile, 4), chunked_cost(4096, 65536, 256, 512)
    assert fused.operations == 2 * chunked.operations == 8 * 2 * 4096 * 65536 * 256
    assert fused.room == 0 and 20 * fused.memory < chunked.memory
    assert fused_cost(4096, 65536, 256, tile, 2).memory < fused.memory
