"""Attention with a bias per key, in one Triton kernel: all that the prototype losses need is made of it.

    log_sum_i = log sum_j exp(q_i . k_j / T + bias_j),   mean_i = sum_j softmax_j(q_i . k_j / T + bias_j) v_j

A program holds a block of queries with the running sums of its rows (the online softmax of flash attention, Dao et al.
2022) and walks over all keys, tile by tile. Nothing is added atomically: results are the same every time.
"""

# Triton launches by its own rules: arguments of a kernel have no types, and further ones say how to compile it.
# pyright: reportMissingParameterType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from dataclasses import dataclass

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """How the work is cut; changes nothing but rounding and speed."""

    queries: int
    """A program's, a power of 2 from 16 on."""
    keys: int
    """At a time, a power of 2 from 16 on."""
    warps: int
    stages: int
    """Tiles on their way from memory at once."""


def attend(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "m d"],
    bias: Float[Tensor, " m"],
    values: Float[Tensor, "m e"] | None,
    *,
    temperature: float,
    tile: Tile,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n e"] | None]:
    """The formulas above, in fp32; `mean` only where there are values.

    Args:
        queries: In fp32 (products run in TF32) or bf16; n from 1 on.
        keys: In the same precision; m from 1 on.
        bias: In fp32.
        values: In the same precision as queries.
        temperature: T.
        tile: How the work is cut.
    """
    width = keys.shape[1] if values is None else values.shape[1]
    log_sums = bias.new_empty(len(queries))
    means = None if values is None else bias.new_empty(len(queries), width)
    attend_kernel[(triton.cdiv(len(queries), tile.queries),)](
        queries.contiguous(),
        keys.contiguous(),
        bias.contiguous(),
        keys if values is None else values.contiguous(),
        log_sums,
        log_sums if means is None else means,
        len(queries),
        len(keys),
        keys.shape[1],
        width,
        1 / temperature,
        QUERIES=tile.queries,
        KEYS=tile.keys,
        WIDTH=padded(max(width, keys.shape[1])),
        WITH_MEANS=values is not None,
        WIDEN=bool(triton.knobs.runtime.interpret),  # the interpreter multiplies no bf16; their fp32 products are equal
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return log_sums, means


def padded(width: int) -> int:
    """What a width takes in the kernel: a power of 2, at least 16."""
    return max(16, triton.next_power_of_2(width))


@triton.jit(do_not_specialize=["many_queries", "many_keys"])
def attend_kernel(
    queries,
    keys,
    bias,
    values,
    log_sums,
    means,
    many_queries,
    many_keys,
    key_width,
    value_width,
    scale,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    WITH_MEANS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One block of queries against all keys."""
    at = tl.arange(0, WIDTH)
    row = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    inside = row < many_queries
    q = tl.load(
        queries + row[:, None] * key_width + at[None, :],
        mask=inside[:, None] & (at < key_width)[None, :],
        other=0.0,
    )
    half = q.dtype
    if WIDEN:
        q = q.to(tl.float32)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mean = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, many_keys, KEYS):
        column = start + tl.arange(0, KEYS).to(tl.int64)
        known = column < many_keys
        k = tl.load(
            keys + column[None, :] * key_width + at[:, None],
            mask=known[None, :] & (at < key_width)[:, None],
            other=0.0,
        )
        if WIDEN:
            k = k.to(tl.float32)
        b = tl.load(bias + column, mask=known, other=float("-inf"))
        logits = tl.dot(q, k, input_precision="tf32") * scale + b[None, :]
        now = tl.maximum(largest, tl.max(logits, 1))
        p = tl.exp(logits - now[:, None])
        shrink = tl.exp(largest - now)
        total = total * shrink + tl.sum(p, 1)
        if WITH_MEANS:
            v = tl.load(
                values + column[:, None] * value_width + at[None, :],
                mask=known[:, None] & (at < value_width)[None, :],
                other=0.0,
            )
            p = p.to(half)
            if WIDEN:
                p = p.to(tl.float32)
                v = v.to(tl.float32)
            mean = tl.dot(p, v, mean * shrink[:, None], input_precision="tf32")
        largest = now
    tl.store(log_sums + row, largest + tl.log(total), mask=inside)
    if WITH_MEANS:
        tl.store(
            means + row[:, None] * value_width + at[None, :],
            mean / total[:, None],
            mask=inside[:, None] & (at < value_width)[None, :],
        )
