"""Two ways to keep a teacher from favouring few prototypes; both come down to one bias per prototype."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.objectives.fastest import column_log_sums


@torch.no_grad()
def sinkhorn_bias(
    bottleneck: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "K d"],
    *,
    temperature: float,
    iterations: int = 3,
    chunk: int = 4096,
) -> Float[Tensor, " K"]:
    """Sinkhorn-Knopp over the tokens of all processes, as the bias log u that makes `Targets` of it.

    Sinkhorn-Knopp scales Q = exp(z . w / T) alternately so that each prototype gets an equal share of the tokens, and
    each token sums to 1. It ends on the latter, which is a softmax: only the K factors u of the former are wanted. An
    iteration is one `column_log_sums` and one reduction of K sums, in the log domain, where nothing overflows.

    Args:
        bottleneck: This process's tokens.
        prototypes: The teacher's.
        temperature: T.
        iterations: How often both are scaled (official: 3).
        chunk: Tokens at a time.
    """
    log_u = bottleneck.new_zeros(len(prototypes))
    for iteration in range(iterations):
        sums = column_log_sums(
            bottleneck, prototypes, log_u if iteration else None, temperature=temperature, chunk=chunk
        )
        log_u = -_logsumexp_over_processes(sums)
    return log_u - log_u.max()  # a constant does not change the softmax


def _logsumexp_over_processes(values: Tensor) -> Tensor:
    """Log of the sum over processes of exp(values), element by element."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    largest = values.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    total = (values - largest).exp()
    dist.all_reduce(total)
    return total.log() + largest


@torch.no_grad()
def update_center(
    center: Float[Tensor, " K"], bottleneck: Float[Tensor, "n d"], prototypes: Float[Tensor, "K d"], *, momentum: float
) -> None:
    """Move an EMA centre towards the mean logits over all processes' tokens, in place; for the next step's targets.

    The mean of logits is the mean bottleneck vector times the prototypes: no [n, K] matrix is needed.
    """
    mean = torch.cat([bottleneck.sum(0), bottleneck.new_full((1,), len(bottleneck))])
    if dist.is_initialized():
        dist.all_reduce(mean)
    center.lerp_((prototypes @ (mean[:-1] / mean[-1])).to(center.dtype), 1 - momentum)
