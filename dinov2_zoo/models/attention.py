"""Self-attention inside each sequence of a packed row.

Three ways, one result. `sdpa` goes group by group and is the reference: it runs everywhere, and within a group all
sequences are equally long, so nothing is padded. `varlen` (torch) and `xformers` take the whole row in one kernel;
they are used for several groups on CUDA, once a forward and backward pass on the real device has shown that they work.
That an import works proves nothing: xformers imports without its kernels.

The way is chosen before the first block and handed to all of them with the packing (`prepare`). Blocks may be
recomputed or compiled, and neither goes with a trial inside of them.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.models.packing import Attend, Packing

_log = logging.getLogger(__name__)

Kernel = Callable[[Packing, torch.device], Attend]
"""Makes ready for a packing on a device what computes attention on its rows."""


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
        out = sdpa(q, k, v, packing) if packing.attend is None else packing.attend(q, k, v)
        return out.flatten(-2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """One `scaled_dot_product_attention` per group of equally long sequences; the reference."""
    groups = zip(*(packing.unpack(t) for t in (q, k, v)), strict=True)
    # [B, N, heads, d] -> [B, heads, N, d] and back
    outputs = [F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in qkv)).transpose(1, 2) for qkv in groups]
    return torch.cat([o.flatten(0, 1) for o in outputs])


def varlen(packing: Packing, device: torch.device) -> Attend:
    """Torch's variable-length attention over the whole row: CUDA, bf16 or fp16."""
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor(packing.lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    starts, longest = F.pad(ends, (1, 0)).to(device), packing.longest

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attn(q, k, v, starts, starts, longest, longest)  # pyright: ignore[reportReturnType]

    return attend


def xformers(packing: Packing, device: torch.device) -> Attend:
    """Xformers' memory-efficient attention with a block-diagonal mask: CUDA."""
    # It warns through its logger about parts that were built for another torch; the probe finds what matters.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    mask = BlockDiagonalMask.from_seqlens(packing.lengths, device=device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask)[0]

    return attend


def prepare(packing: Packing, row: Float[Tensor, "total D"], head_dim: int) -> Packing:
    """The packing with the fastest way that works for such rows; to be called before the first block.

    Args:
        packing: Of the row.
        row: What the first block will be given.
        head_dim: Width of a head.
    """
    # One group needs no more than `sdpa`; and who compiles a whole network compiles that, without a break for a trial.
    if len(packing.groups) == 1 or torch.compiler.is_compiling():
        return packing
    device = row.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else row.dtype
    kernel = choose(device, dtype, head_dim, torch.are_deterministic_algorithms_enabled())
    return packing if kernel is None else _ready(packing, kernel, device)


# Kept for later steps. A tensor made in inference mode could not be used in training, so none is.
@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _ready(packing: Packing, kernel: Kernel, device: torch.device) -> Packing:
    return replace(packing, attend=kernel(packing, device))


@functools.cache
def choose(device: torch.device, dtype: torch.dtype, head_dim: int, deterministic: bool) -> Kernel | None:
    """The fastest way that works here: `xformers`, else `varlen`, on CUDA; None, for `sdpa`, elsewhere.

    Tried once per case, and where none works, a warning says so and why. Only `sdpa` is known to repeat its gradients
    bit for bit where torch is told to (`deterministic`).
    """
    if deterministic or not _has_kernels(device):
        return None
    faults: list[str] = []
    for kernel in (xformers, varlen):
        fault = fault_of(kernel, device, dtype, head_dim)
        if not fault:
            return kernel
        faults.append(f"{kernel.__name__}: {fault}")
    half = str(dtype).removeprefix("torch.")
    _log.warning(
        f"Crops of several sizes go through attention one size after the other on {device} ({half}, heads of "
        f"{head_dim}), for no kernel that takes them together works ({'; '.join(faults)}): install dinov2-zoo[xformers]"
        ", or use runtime.precision bf16."
    )
    return None


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda"


def fault_of(kernel: Kernel, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Try a way forward and backward on two small groups, against the reference; what is wrong, "" for nothing.

    Raises:
        OutOfMemoryError: There is no room to try it, which says nothing of the kernel.
    """
    packing = Packing(((2, 200), (3, 5)))  # torch takes another kernel for sequences beyond 128 tokens
    # The first call may come from an evaluation, and the answer holds for training too; or from within a checkpoint,
    # whose hooks on saved tensors are not meant for these.
    plain = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    no_autocast = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]), plain, no_autocast:
        # Laid out as a block's: queries, keys and values of a token side by side.
        values = torch.randn(sum(packing.lengths), 3, 2, head_dim, generator=torch.Generator().manual_seed(0))
        mine = values.to(device, dtype, copy=True).requires_grad_()
        reference = values.to(device, torch.float32).requires_grad_()
        try:
            out = kernel(packing, device)(*mine.unbind(1))
            out.float().square().sum().backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Kernels refuse a device, a dtype or a head width with whatever class their layer of the stack uses.
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        q, k, v = reference.unbind(1)
        expected = sdpa(q, k, v, packing)
        expected.square().sum().backward()
    assert mine.grad is not None and reference.grad is not None
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 5e-2
    pairs = {"outputs": (out.float(), expected), "gradients": (mine.grad.float(), reference.grad)}
    wrong = [name for name, (a, b) in pairs.items() if not torch.allclose(a, b, atol=tolerance, rtol=tolerance)]
    return f"its {' and '.join(wrong)} are wrong" if wrong else ""
