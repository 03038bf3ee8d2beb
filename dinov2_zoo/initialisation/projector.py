"""First weights of the projector: the ridge regression of the teacher's tokens on the student's."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.initialisation.ridge import fit_maps
from dinov2_zoo.objectives.distillation import Distillation
from dinov2_zoo.objectives.features import FeaturesObjective


def fit_projector(
    module: Distillation,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> None:
    """Give distillation by features its statistics and its projector's first weights, in place and before sharding.

    Args:
        module: With a `FeaturesObjective`.
        batches: This process's share of some training images.
        device: Where the module is.
        autocast: Precision of the forward passes.
    """
    assert isinstance(module.objective, FeaturesObjective)
    # The average is an equal copy of the student so far, and in evaluation mode.
    with autocast():
        maps = fit_maps(module.ema, module.teacher, batches, device=device)
    with torch.no_grad():
        for standardiser, linear_map in (
            (module.objective.class_token, maps.class_token),
            (module.objective.patches, maps.patches),
        ):
            standardiser.mean.copy_(linear_map.mean)
            standardiser.deviation.copy_(linear_map.deviation)
    for branch in (module.student, module.ema):
        assert branch.projector is not None
        maps.class_token.put_into(branch.projector.class_token, scaled=False)
        maps.patches.put_into(branch.projector.patches, scaled=False)
