"""Correspondence without training: patches of two views, keypoints of two photos, surfaces of an object."""

from collections.abc import Iterable

from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.evaluation.correspondence.protocol import (
    CorrespondenceData,
    evaluate_correspondence,
    open_correspondence,
)
from dinov2_zoo.evaluation.task import Opener, Task

_UNITS = {
    "recall": "within a patch, %",
    "pck": "PCK@0.1, %",
    "pck_point": "PCK@0.1 per point, %",
    "pck_image": "PCK@0.1 per image, %",
    "pck_class": "PCK@0.1 per class, %",
    "recall_2cm": "within 2 cm, %",
}
_ROWS = {"PCK": "pck", "per image": "pck_image", "per class": "pck_class"}


def _open(config: EvaluateConfig, opened: Opener) -> CorrespondenceData:
    return opened(open_correspondence, config.data.correspondence or "")


def _rows(metrics: Iterable[str]) -> dict[str, str]:
    return {word: metric for word, metric in _ROWS.items() if metric in metrics}


TASKS = (
    Task(
        "correspondence",
        evaluate_correspondence,
        "correspondence",
        _open,
        ("correspondence",),
        _UNITS,
        title="correspondence, {kind}",
        more_rows=_rows,
    ),
)
