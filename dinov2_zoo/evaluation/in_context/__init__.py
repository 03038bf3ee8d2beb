"""Semantic segmentation without training: patches of labelled images vote."""

from collections.abc import Iterable

from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.evaluation.in_context.protocol import evaluate_in_context
from dinov2_zoo.evaluation.segmentation.readers import SegmentationData, open_segmentation
from dinov2_zoo.evaluation.task import Opener, Task

_UNITS = {"miou": "mean IoU, %", "patch_neighbours": "of one class, %"}


def _open(config: EvaluateConfig, opened: Opener) -> SegmentationData:
    return opened(open_segmentation, config.data.segmentation or "")


def _neighbours(metrics: Iterable[str]) -> dict[str, str]:
    return {"patch neighbours": "patch_neighbours"}


TASKS = (
    Task("in_context", evaluate_in_context, "in_context", _open, ("segmentation",), _UNITS, more_rows=_neighbours),
)
