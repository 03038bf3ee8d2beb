"""k-NN, linear probes and logistic regression on labelled images."""

from collections.abc import Iterable

from dinov2_zoo.evaluation.classification.knn import evaluate_knn
from dinov2_zoo.evaluation.classification.labelled import open_all, open_apart, open_with_robust
from dinov2_zoo.evaluation.classification.linear import ROBUST, evaluate_linear
from dinov2_zoo.evaluation.classification.logistic import evaluate_logistic
from dinov2_zoo.evaluation.task import Task

_UNITS = {"top1": "top-1, %"}


def _robust(metrics: Iterable[str]) -> dict[str, str]:
    return {name.removeprefix(ROBUST): name for name in metrics if name.startswith(ROBUST)}


TASKS = (
    Task("knn", evaluate_knn, "knn", open_all, ("train", "test"), _UNITS, title="k-NN, k = {k}"),
    Task(
        "linear",
        evaluate_linear,
        "linear",
        open_with_robust,
        ("train", "test", "robust"),
        _UNITS,
        more_rows=_robust,
    ),
    Task("logistic", evaluate_logistic, "logistic", open_apart, ("train", "test"), _UNITS),
)
