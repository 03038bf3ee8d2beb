"""What one iteration of Sinkhorn-Knopp wants to know of some tokens: the weight of each prototype's column.

    log sum_n v_n exp(z_n . w_k / T),   1 / v_n = sum_k exp(z_n . w_k / T + log u_k)

It adds up over sets of tokens by `logaddexp`: over chunks, processes, or parts of a batch.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.objectives.precision import with_tf32_products


@torch.no_grad()
@with_tf32_products
def column_log_sums(
    bottleneck: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "K d"],
    log_u: Float[Tensor, " K"] | None,
    *,
    temperature: float,
    chunk: int = 4096,
) -> Float[Tensor, " K"]:
    """The formula above, in chunks of tokens; two [chunk, K] matrices are the peak.

    With u the product is v_n exp(..) = softmax_k(z . w_k / T + log u_k) / u_k, which neither overflows nor, for the
    nearest tokens of a prototype, vanishes: u has just made each column sum to 1.

    Args:
        bottleneck: Unit vectors z.
        prototypes: w.
        log_u: The prototypes' factors so far; None, in the first iteration: all v_n are 1.
        temperature: T.
        chunk: Tokens at a time.
    """
    sums = bottleneck.new_full((len(prototypes),), -math.inf)
    room = bottleneck.new_empty(2, min(chunk, len(bottleneck)), len(prototypes))
    for start in range(0, len(bottleneck), chunk):
        rows = bottleneck[start : start + chunk]
        logits, shares = room[:, : len(rows)].unbind()
        scaled = rows / temperature
        if log_u is None:
            torch.mm(scaled, prototypes.T, out=logits)
            largest = logits.amax(0)
            found = logits.sub_(largest).exp_().sum(0).log() + largest
        else:
            torch.addmm(log_u, scaled, prototypes.T, out=logits)
            found = torch.softmax(logits, 1, out=shares).sum(0).log() - log_u
        sums = torch.logaddexp(sums, found)
    return sums
