"""How far a student's tokens are from its teacher's, one by one: a weighted sum of three distances."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def token_distance(
    predicted: Float[Tensor, "*tokens D"],
    target: Float[Tensor, "*tokens D"],
    *,
    cosine: float = 0.0,
    smooth_l1: float = 0.0,
    mse: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean over tokens of cosine (1 - cos) + smooth_l1 sl1 + mse (p - t)^2, the latter two means over channels.

    Cosine alone leaves lengths free; smooth-L1 holds them without being ruled by a few large channels as MSE is. Shares
    in the literature: 0.9, 0.1, 0 on patch tokens and 1, 0, 0 on class tokens (EUPE, 2026); 0, 0, 1 on PHI-S
    standardised tokens (Ranzinger et al. 2024).

    Args:
        predicted: The student's tokens through its projector.
        target: The teacher's, standardised.
        cosine: Weight of the first; a distance of weight 0 is not computed.
        smooth_l1: Weight of the second.
        mse: Weight of the third.
    """
    parts: list[Tensor] = []
    if cosine:
        parts.append(cosine * (1 - F.cosine_similarity(predicted, target, dim=-1).mean()))
    if smooth_l1:
        parts.append(smooth_l1 * F.smooth_l1_loss(predicted, target))
    if mse:
        parts.append(mse * F.mse_loss(predicted, target))
    return torch.stack(parts).sum()
