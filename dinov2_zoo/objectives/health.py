"""Is the teacher collapsing? Metrics that show it long before k-NN does.

A collapsed network says the same of every image. Its prototypes' distribution may then be one spike or perfectly flat,
so neither its entropy nor its loss tells; what tells is that knowing the image no longer changes the distribution.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.objectives.precision import without_autocast


@without_autocast
@torch.no_grad()
def health(
    class_tokens: Float[Tensor, "n D"],
    bottleneck: Float[Tensor, "n d"],
    prototypes: Float[Tensor, "K d"],
    *,
    temperature: float,
) -> dict[str, Tensor]:
    """Health metrics of one process's batch.

    Args:
        class_tokens: The teacher's, before its head.
        bottleneck: The same after it.
        prototypes: The teacher's.
        temperature: The teacher's.

    Returns:
        `information`: nats that an image tells about its prototype, before targets are balanced: the entropy of the
        mean assignment less the mean entropy of assignments; 0 (collapsed) to log min(n, K).
        `mean_entropy`: entropy of the mean assignment, as a share of log K.
        `prototypes_used`: share of the images' nearest prototypes that are different ones, 1/n to 1.
        `rank`: directions that class tokens fill, by participation ratio of the variances, 1 to min(n - 1, D).
        `neighbour_distance`: mean distance of an image to its nearest neighbour on the unit sphere, 0..2.
    """
    logits = bottleneck @ prototypes.T / temperature
    log_p = torch.log_softmax(logits, dim=1)
    p = log_p.exp()
    each = -(p * log_p).sum(1).mean()
    mean = p.mean(0)
    together = -torch.xlogy(mean, mean).sum()
    # Not unique(): how many it finds the host would have to ask the device for.
    nearest = logits.argmax(1).sort().values
    used = (1 + (nearest.diff() != 0).sum()) / len(logits)

    tokens = class_tokens.float()
    centred = tokens - tokens.mean(0)
    gram = centred @ centred.T if len(tokens) < tokens.shape[1] else centred.T @ centred  # the same eigenvalues
    rank = gram.trace().square() / gram.square().sum().clamp(min=1e-12)
    unit = F.normalize(tokens, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-1).amax(1)
    distance = (2 - 2 * cosine).clamp(min=0).sqrt().mean()
    return {
        "information": together - each,
        "mean_entropy": together / math.log(max(2, len(prototypes))),
        "prototypes_used": used,
        "rank": rank,
        "neighbour_distance": distance,
    }
