"""Which few numbers a teacher's tokens are stored as: their principal directions, on a scale of 255 steps each.

Channels differ in scale by orders of magnitude, and the students' objective standardises them: so the directions are
those of standardised tokens, class and patch tokens apart.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.errors import DataError
from dinov2_zoo.initialisation.ridge import Moments
from dinov2_zoo.models.stored import LEVELS, LinearCode, TokenCode
from dinov2_zoo.models.tokens import Tokens

SPAN = 8.0
"""Deviations that the codes of a direction reach to either side (chosen here: a step is 0.063 of a deviation, which
rounds off 0.03 % of the variance; a code made for normal numbers would stop at 4 and cut off outliers)."""

CONSTANT = 1e-9
"""Share of the mean square below which a variance is only rounding."""


@torch.no_grad()
def fit_code(
    teach: Callable[[Tensor], Tokens],
    crops: Iterable[Float[Tensor, "n 3 G G"]],
    *,
    class_directions: int,
    directions: int,
) -> TokenCode:
    """Fit both codes on a teacher's tokens of some crops.

    Args:
        teach: The teacher's tokens of some crops, fp32 or better.
        crops: At least one batch, on the teacher's device.
        class_directions: Numbers per class token; all channels: each is stored by itself, and nothing is projected.
        directions: Numbers per patch token; likewise.

    Returns:
        In fp32, on the teacher's device.

    Raises:
        DataError: There are fewer tokens than directions, or they do not vary, or they are not finite.
    """
    kinds: list[Moments] = []
    for batch in crops:
        tokens = teach(batch)
        rows = tokens.class_token, tokens.patches.flatten(0, 1)
        if not kinds:
            kinds = [Moments(x.shape[1], 0, x.device) for x in rows]
        for moments, x in zip(kinds, rows, strict=True):
            moments.add_alone(x)
    assert kinds, "no batch to fit on"
    of_class = _linear_code(kinds[0], class_directions, "class", "class_directions")
    return TokenCode(of_class, _linear_code(kinds[1], directions, "patch", "directions"))


def _linear_code(moments: Moments, directions: int, kind: str, option: str) -> LinearCode:
    count, total, products = (moments.sums[name] for name in ("n", "x", "xx"))
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    variance, square = covariance.diagonal().clamp(min=0), products.diagonal() / count
    if not bool(covariance.isfinite().all()):
        raise DataError(f"The teacher's {kind} tokens are not finite: its weights are damaged, take another.")
    if bool(variance.sum() <= CONSTANT * square.sum()):
        raise DataError(
            f"The teacher gives the same {kind} token whatever it is shown, so there is nothing to learn from it: take "
            "a trained teacher, and look whether its weights are whole."
        )
    dim, found = len(mean), int(count)
    if directions < dim and found <= directions:
        raise DataError(
            f"{found} {kind} tokens are too few to find {directions} principal directions of: give more images "
            f"(--fit_images), or a --{option} below {found}, or {dim}, which needs none."
        )
    # A channel that never varies is its mean: its deviation has no effect.
    deviation = torch.where(variance > CONSTANT * square, variance.sqrt(), 1.0)
    if directions == dim:
        basis, spread = torch.eye(dim, dtype=mean.dtype, device=mean.device), torch.ones_like(mean)
    else:
        values, vectors = torch.linalg.eigh(covariance / torch.outer(deviation, deviation))  # ascending
        basis, spread = vectors.flip(1)[:, :directions], values.flip(0)[:directions].clamp(min=1e-12).sqrt()
    step = SPAN * spread / LEVELS
    write, read = basis / deviation[:, None] / step, (basis * step).T * deviation
    return LinearCode(mean.float(), write.float().contiguous(), read.float().contiguous())
