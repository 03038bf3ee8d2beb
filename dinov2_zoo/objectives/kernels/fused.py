"""The prototype losses as attention between tokens and prototypes: no [tokens, K] matrix is ever in memory.

With p the target and q the student's softmax, both over prototypes, the cross-entropy of a token is linear in p:

    loss = mass log sum_k exp(z . w_k / T) - z . (sum_k p_k w_k) / T
    d loss / d z = (mass sum_k q_k w_k - sum_k p_k w_k) / T
    d loss / d w_k = (sum_tokens mass q_k z - sum_tokens p_k z) / T

The sums over k are attention of tokens to prototypes. Those over tokens are attention of prototypes to tokens, with
biases of minus the tokens' own log-sums, times exp of the prototype's log-sum. Targets come in by p only, so
a teacher's token attends once, however many of the student's views it is matched with.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.objectives.kernels.attend import Tile, attend
from dinov2_zoo.objectives.known_gradients import Computed, with_known_gradients
from dinov2_zoo.objectives.targets import Targets


def fused_cross_entropy(
    views: Float[Tensor, "V B d"],
    prototypes: Float[Tensor, "K d"],
    targets: Targets,
    pairs: Float[Tensor, "V G"],
    *,
    temperature: float,
    weights: Float[Tensor, " B"] | None,
    tile: Tile,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """`plain_cross_entropy`, which explains the arguments, for at least one image; gradients reach the student only.

    Args:
        views: As there.
        prototypes: As there.
        targets: As there.
        pairs: As there.
        temperature: As there.
        weights: As there.
        tile: How the work is cut.
        dtype: What goes into products: fp32 (as TF32) or bf16. Sums are fp32.
    """
    images = views.shape[1]
    weight = (views.new_ones(images) if weights is None else weights)[:, None]
    mass = pairs.sum(1)[:, None, None]
    goals, their_prototypes, bias, theirs = targets.bottleneck, targets.prototypes, targets.bias, targets.temperature

    def mean_over(queries: Tensor, keys: Tensor, bias: Tensor, values: Tensor, t: float) -> tuple[Tensor, Tensor]:
        q, k, v = (x.to(dtype) for x in (queries, keys, values))
        log_sums, means = attend(q, k, bias, v, temperature=t, tile=tile)
        assert means is not None
        return log_sums, means

    def compute(views: Tensor, prototypes: Tensor) -> Computed:
        z = views.flatten(0, 1)
        own_sums, own_mean = mean_over(z, prototypes, torch.zeros_like(bias), prototypes, temperature)
        goal_sums, goal_mean = mean_over(goals, their_prototypes, bias, prototypes, theirs)
        wanted = _mixed(pairs, goal_mean.unflatten(0, (-1, images)))
        entropies = mass * own_sums.view(-1, images, 1) - (views * wanted).sum(2, keepdim=True) / temperature
        d_views = (mass * own_mean.view_as(views) - wanted) * (weight / temperature)

        pull, push = (mass * weight * views).flatten(0, 1), _mixed(pairs.T, weight * views).flatten(0, 1)
        log_mass, at_tokens = mean_over(prototypes, z, -own_sums, pull, temperature)
        log_share, at_goals = mean_over(their_prototypes, goals, -goal_sums, push, theirs)
        d_prototypes = log_mass.exp()[:, None] * at_tokens - (log_share + bias).exp()[:, None] * at_goals
        return (entropies * weight).sum(), d_views, d_prototypes.div_(temperature)

    return with_known_gradients(compute, views, prototypes)


@torch.no_grad()
def fused_column_log_sums(
    bottleneck: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "K d"],
    log_u: Float[Tensor, " K"] | None,
    *,
    temperature: float,
    tile: Tile,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " K"]:
    """`column_log_sums`, which explains the arguments, for at least one token.

    Tokens attend to prototypes for log v_n, then prototypes to tokens.
    """
    z, w = bottleneck.to(dtype), prototypes.to(dtype)
    log_v = bottleneck.new_zeros(len(z))
    if log_u is not None:
        log_v = -attend(z, w, log_u, None, temperature=temperature, tile=tile)[0]
    return attend(w, z, log_v, None, temperature=temperature, tile=tile)[0]


def _mixed(pairs: Float[Tensor, "to from_"], views: Float[Tensor, "from_ B d"]) -> Float[Tensor, "to B d"]:
    """Sums of views, each weighted by how much the pair counts."""
    return (pairs[:, :, None, None] * views).sum(1)
