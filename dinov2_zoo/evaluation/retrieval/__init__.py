"""Retrieval of landmarks and artworks."""

from collections.abc import Iterable

from dinov2_zoo.config.evaluate import EvaluateConfig
from dinov2_zoo.evaluation.retrieval.protocol import evaluate_retrieval
from dinov2_zoo.evaluation.retrieval.readers import RetrievalSet, open_retrieval
from dinov2_zoo.evaluation.task import Opener, Task

_UNITS = {"map": "mAP, %", "map_medium": "mAP medium, %", "map_hard": "mAP hard, %"}


def _open(config: EvaluateConfig, opened: Opener) -> RetrievalSet:
    return opened(open_retrieval, config.data.retrieval or "")


def _hard(metrics: Iterable[str]) -> dict[str, str]:
    return {"hard": "map_hard"} if "map_hard" in metrics else {}


TASKS = (Task("retrieval", evaluate_retrieval, "retrieval", _open, ("retrieval",), _UNITS, more_rows=_hard),)
