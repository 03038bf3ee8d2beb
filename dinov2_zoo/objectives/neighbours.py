"""Neighbours: a token's nearest others should be the same to the student as to the teacher.

Both look at the same others; cosine over temperature, softmax, and the Kullback-Leibler divergence of the student's
distribution from the teacher's:

    sum_j p_j (log p_j - log q_j),   p = softmax_j(cos(t, t_j) / T),   q = softmax_j(cos(s, s_j) / T)

At a low temperature only near ones count, unlike in a Gram matrix. (SEED, Fang et al. 2021; CompRess, Koohpayegani et
al. 2020.)
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from dinov2_zoo.data.positions import sampled_positions
from dinov2_zoo.objectives.koleo import gather_with_gradient

NOBODY = -1e4
"""Logit of what is no neighbour: its probability is 0, and 0 times it no NaN, as it would be with -inf."""


def neighbour_divergence(
    student: Float[Tensor, "n m"], teacher: Float[Tensor, "n m"], hidden: Bool[Tensor, "#n m"], temperature: float
) -> Float[Tensor, ""]:
    """The formula above, its mean over n tokens.

    Args:
        student: Cosines with m others.
        teacher: The teacher's, with the same others.
        hidden: Others that do not count.
        temperature: Of both softmaxes.
    """
    log_q, log_p = ((cosine / temperature).masked_fill(hidden, NOBODY).log_softmax(1) for cosine in (student, teacher))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def patch_neighbour_loss(
    student: Float[Tensor, "V B N Ds"],
    teacher: Float[Tensor, "V B N Dt"],
    seeds: Int64[Tensor, " B"],
    *,
    patches: int,
    temperature: float,
) -> Float[Tensor, ""]:
    """Divergence between patches drawn from all crops of one size, of the images of all processes.

    Costs two [2 x B x patches, 2 x all images x patches] matrices, forward and backward.

    Args:
        student: Patch tokens of V views of this process's B images, not projected.
        teacher: The same patches.
        seeds: `Batch.seeds`: which patches are drawn is the same on any number of processes.
        patches: Drawn of each crop.
        temperature: Of both softmaxes.
    """
    views, images, count = student.shape[:3]
    chosen = sampled_positions(seeds, views, count, patches / count).to(student.device, non_blocking=True)

    def cosines(tokens: Tensor) -> Tensor:
        found = F.normalize(tokens.flatten(0, 2).index_select(0, chosen), dim=1).unflatten(0, (views, images, -1))
        # Images first: this process's rows are then in one piece among everyone's.
        rows = found.transpose(0, 1).flatten(0, 2)
        return rows @ gather_with_gradient(rows).T

    mine, theirs = cosines(student), cosines(teacher)
    itself = torch.zeros_like(mine, dtype=torch.bool)
    rank = dist.get_rank() if dist.is_initialized() else 0
    itself.diagonal(rank * len(itself)).fill_(True)
    return neighbour_divergence(mine, theirs, itself, temperature)


class ClassQueue(nn.Module):
    """The teacher's latest class tokens, over all processes; part of the training state.

    Args:
        size: Tokens kept.
        dim: Their width.
    """

    tokens: Float[Tensor, "Q D"]
    seen: Int64[Tensor, ""]

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.zeros(size, dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def loss(
        self, student: Float[Tensor, "V B D"], teacher: Float[Tensor, "V B D"], temperature: float
    ) -> Float[Tensor, ""]:
        """Divergence over the queue, the student's tokens being in the teacher's space; 0 while the queue is empty.

        The batch itself is not in the queue: a token's own target would be its only neighbour.
        """
        kept = self.tokens.clone()  # `add` moves them before the backward pass
        empty = (torch.arange(len(kept), device=kept.device) >= self.seen)[None]
        mine, theirs = (F.normalize(x.flatten(0, 1), dim=1) @ kept.T for x in (student, teacher))
        return neighbour_divergence(mine, theirs, empty, temperature)

    @torch.no_grad()
    def add(self, teacher: Float[Tensor, "V B D"]) -> None:
        """Put a batch's class tokens in place of the oldest. Every process must call it."""
        new = gather_with_gradient(F.normalize(teacher.transpose(0, 1).flatten(0, 1), dim=1))
        places = (self.seen + torch.arange(len(new), device=new.device)) % len(self.tokens)
        self.tokens.index_copy_(0, places, new.to(self.tokens.dtype))
        self.seen += len(new)
