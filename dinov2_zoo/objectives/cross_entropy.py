"""Cross-entropy between a student's views and a teacher's, over prototypes: plain, and in chunks of images.

    loss = sum over views v, g and images b of  pairs_vg weight_b sum_k -target_gbk log softmax_k(z_vb . w_k / T)

The logarithm does not depend on g, so a view that is matched with several of the teacher's meets the sum of their
distributions in one product.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.objectives.known_gradients import Computed, with_known_gradients
from dinov2_zoo.objectives.precision import with_tf32_products
from dinov2_zoo.objectives.targets import Targets


def plain_cross_entropy(
    views: Float[Tensor, "V B d"],
    prototypes: Float[Tensor, "K d"],
    targets: Targets,
    pairs: Float[Tensor, "V G"],
    *,
    temperature: float,
    weights: Float[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """The formula above. The reference.

    Args:
        views: The student's unit vectors z, view by view.
        prototypes: The student's prototypes w.
        targets: The teacher's G x B rows, view by view.
        pairs: How much each pair of views counts.
        temperature: The student's T.
        weights: How much each image counts (a patch is an image with one view); None: 1.
    """
    log_p = torch.log_softmax(views @ prototypes.T / temperature, dim=2)
    if weights is not None:
        log_p = log_p * weights[:, None]
    target = targets.probabilities().unflatten(0, (pairs.shape[1], -1))
    return -torch.einsum("vg,gbk,vbk->", pairs, target, log_p)


@with_tf32_products
def chunked_cross_entropy(
    views: Float[Tensor, "V B d"],
    prototypes: Float[Tensor, "K d"],
    targets: Targets,
    pairs: Float[Tensor, "V G"],
    *,
    temperature: float,
    weights: Float[Tensor, " B"] | None = None,
    chunk: int = 4096,
) -> Float[Tensor, ""]:
    """`plain_cross_entropy`, loss and gradients in one pass over chunks of images.

    Three [chunk, K] matrices are the peak, however many images there are. Gradients reach the student only.

    Args:
        views: As above.
        prototypes: As above.
        targets: As above.
        pairs: As above.
        temperature: As above.
        weights: As above.
        chunk: The student's tokens at a time; all views of an image are in one chunk.
    """
    count, images = views.shape[:2]
    weights = views.new_ones(images) if weights is None else weights

    # The gradient with respect to logits is weight (mass * softmax - target), mass = sum_g pairs_vg: all is at hand.
    # Everything that scales a row (1 / T, weights) is applied to vectors of width d, not to the K logits. The matrices
    # are written in place, because fresh memory costs the CPU more than what is computed in it.
    def compute(views: Tensor, prototypes: Tensor) -> Computed:
        goals = (targets.bottleneck / targets.temperature).unflatten(0, (pairs.shape[1], images))
        # Of a single pair, how much it counts is a matter of weights, and no matrix is scaled.
        single = pairs.numel() == 1
        each, masses = (weights * pairs[0], torch.ones_like(pairs)) if single else (weights, pairs)
        step = min(images, max(1, chunk // count))
        room = views.new_empty(3, step * max(pairs.shape), len(prototypes))
        loss = views.new_zeros(())
        d_views, d_prototypes = torch.empty_like(views), torch.zeros_like(prototypes)
        for start in range(0, images, max(1, step)):
            some = slice(start, start + step)
            z, goal, weight = views[:, some].flatten(0, 1) / temperature, goals[:, some], each[some].repeat(count)
            logits, log_p, target = room[:, : len(z)].unbind()
            _targets(goal, targets, None if single else pairs, room, out=target)
            torch.log_softmax(torch.mm(z, prototypes.T, out=logits), 1, out=log_p)
            loss -= torch.dot(torch.mul(target, log_p, out=logits).sum(1), weight)
            mass = masses.sum(1).repeat_interleave(goal.shape[1])
            less = torch.addcmul(target, log_p.exp_(), mass[:, None], value=-1, out=logits)  # target - mass * softmax
            d_views[:, some] = ((less @ prototypes) * (-weight[:, None] / temperature)).unflatten(0, (count, -1))
            d_prototypes.addmm_(less.T, z * weight[:, None], alpha=-1)
        return loss, d_views, d_prototypes

    return with_known_gradients(compute, views, prototypes)


def _targets(
    goal: Float[Tensor, "G b d"], targets: Targets, pairs: Tensor | None, room: Tensor, *, out: Tensor
) -> None:
    """sum_g pairs_vg target_gb of some images, into [V b, K]; overwrites the first two matrices of `room`."""
    rows = goal.flatten(0, 1)
    logits, found = room[:2, : len(rows)].unbind()
    torch.addmm(targets.bias, rows, targets.prototypes.T, out=logits)
    if pairs is None:
        torch.softmax(logits, 1, out=out)
        return
    torch.softmax(logits, 1, out=found)
    torch.mm(pairs, found.view(len(goal), -1), out=out.view(len(pairs), -1))
