"""Semantic segmentation from frozen features: a linear layer on the map, sliding windows, mean IoU."""

from functools import partial

from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.evaluation.segmentation.protocol import evaluate_segmentation
from dinov2_zoo.evaluation.segmentation.readers import SegmentationData, open_segmentation
from dinov2_zoo.evaluation.task import Opener, Task


def _open(config: EvaluateConfig, opened: Opener) -> SegmentationData:
    return opened(open_segmentation, config.data.segmentation or "")


TASKS = tuple(
    Task(
        f"segmentation:{head}",
        partial(evaluate_segmentation, head=head),
        "segmentation",
        _open,
        ("segmentation",),
        {"miou": "mean IoU, %"},
    )
    for head in ("linear", "ms")
)
