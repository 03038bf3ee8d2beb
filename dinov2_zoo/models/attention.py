"""Self-attention inside each sequence of a packed row.

Three ways, one result. `sdpa` goes group by group and is the reference: it runs everywhere, and within a group all
sequences are equally long, so nothing is padded. `varlen` (torch) and `xformers` take the whole row in one kernel;
they are used for several groups on CUDA, once a forward and backward pass on the real device has shown that they work.
That an import works proves nothing: xformers imports without its kernels.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.models.packing import Packing

Attend = Callable[[Tensor, Tensor, Tensor, Packing], Tensor]
"""(query, key, value [total, heads, head_dim], packing) -> [total, heads, head_dim]."""


class Attention(nn.Module):
    """Multi-head self-attention with one packed qkv projection (timm's parameter names)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "total D"], packing: Packing) -> Float[Tensor, "total D"]:
        """Attend within each sequence of the row."""
        return self.proj(self.attend(x, packing))

    def attend(self, x: Float[Tensor, "total D"], packing: Packing) -> Float[Tensor, "total D"]:
        """What the heads say, side by side, before the output projection mixes them."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        kernel = choose(q.device, q.dtype, q.shape[-1]) if len(packing.groups) > 1 else sdpa
        return kernel(q, k, v, packing).flatten(-2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """One `scaled_dot_product_attention` per group of equally long sequences; the reference."""
    groups = zip(*(packing.unpack(t) for t in (q, k, v)), strict=True)
    # [B, N, heads, d] -> [B, heads, N, d] and back
    outputs = [F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in qkv)).transpose(1, 2) for qkv in groups]
    return torch.cat([o.flatten(0, 1) for o in outputs])


def varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """Torch's variable-length attention over the whole row: CUDA, bf16 or fp16."""
    from torch.nn.attention.varlen import varlen_attn

    starts = _starts(packing, q.device)
    return varlen_attn(q, k, v, starts, starts, packing.longest, packing.longest)  # pyright: ignore[reportReturnType]


def xformers(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """Xformers' memory-efficient attention with a block-diagonal mask: CUDA."""
    # It warns through its logger about parts that were built for another torch; the probe finds what matters.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q[None], k[None], v[None], attn_bias=_block_diagonal(packing, q.device))[0]


# Both are kept for later calls. A tensor made in inference mode could not be used in training, so none is.
@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _starts(packing: Packing, device: torch.device) -> Tensor:
    """Where each sequence starts, and where the last ends: int32 [sequences + 1]."""
    ends = torch.tensor(packing.lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return F.pad(ends, (1, 0)).to(device)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _block_diagonal(packing: Packing, device: torch.device) -> Any:
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    return BlockDiagonalMask.from_seqlens(packing.lengths, device=device)


@functools.cache
def choose(device: torch.device, dtype: torch.dtype, head_dim: int) -> Attend:
    """The fastest way that works here: `xformers`, else `varlen`, on CUDA; `sdpa` elsewhere. Asked once per case."""
    if device.type == "cuda":
        for attend in (xformers, varlen):
            if works(attend, device, dtype, head_dim):
                return attend
    return sdpa


def works(attend: Attend, device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Try a way forward and backward on two small groups, against the reference; False when it fails or differs."""
    packing = Packing(((2, 9), (3, 5)))
    total = sum(packing.lengths)
    # The first call may come from an evaluation, and the answer holds for training too.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        values = torch.randn(3, total, 2, head_dim, generator=torch.Generator().manual_seed(0))
        mine = values.to(device, dtype, copy=True).requires_grad_()
        reference = values.to(device, torch.float32).requires_grad_()
        q, k, v = mine.unbind(0)
        try:
            out = attend(q, k, v, packing)
            out.float().square().sum().backward()
        except Exception:
            # Kernels refuse a device, a dtype or a head width with whatever class their layer of the stack uses.
            return False
        q, k, v = reference.unbind(0)
        expected = sdpa(q, k, v, packing)
        expected.square().sum().backward()
    assert mine.grad is not None and reference.grad is not None
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 5e-2
    pairs = ((out.float(), expected), (mine.grad.float(), reference.grad))
    return all(torch.allclose(a, b, atol=tolerance, rtol=tolerance) for a, b in pairs)
