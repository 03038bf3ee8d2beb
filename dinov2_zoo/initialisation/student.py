"""A student's first weights from its teacher: fitted or selected."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.initialisation.fitted import fit_student
from dinov2_zoo.initialisation.selected import select_weights
from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.objectives.distillation import Distillation


def first_weights(
    module: Distillation,
    init: str,
    batches: Iterable[Batch],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    on_block: Callable[[int, int], None] = lambda done, total: None,
    *,
    network: VisionTransformer | None = None,
) -> None:
    """Give a student, and its average, first weights from its teacher; in place and before sharding.

    Args:
        module: Its student is a Vision Transformer of ours.
        init: "fitted" or "selected".
        batches: This process's share of some training images, for "fitted".
        autocast: Precision of the forward passes.
        on_block: Called after each block of a fitted student with how many are done, and of how many.
        network: The teacher's network, where the module has only what it said (`models.stored`); default: the module's.
    """
    student, teacher = module.student.backbone, network or module.teacher.backbone
    assert isinstance(student, VisionTransformer) and isinstance(teacher, VisionTransformer)
    if init == "selected":
        select_weights(teacher, student)
    else:
        crops = torch.cat([batch.global_crops.flatten(0, 1) for batch in batches])
        fit_student(teacher, student, crops, autocast=autocast, on_block=on_block)
    module.reset_average()
