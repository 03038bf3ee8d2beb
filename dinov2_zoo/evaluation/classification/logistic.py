"""Logistic regression on frozen features, its penalty chosen along a path (official `eval/log_regression.py`)."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.classification import LogisticConfig
from dinov2_zoo.data.augment import generator
from dinov2_zoo.data.sources import Source
from dinov2_zoo.evaluation.classification.labelled import check_classes, facts, skipped_notes
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.feature_store import Kind, stored_features
from dinov2_zoo.evaluation.record import Result
from dinov2_zoo.training.distributed import DistributedContext

Say = Callable[[str], object]
Weights = Float[Tensor, "C D1"]
"""One row per class; the last column is the intercept, which is not penalised."""


def fit_logistic(
    features: Float[Tensor, "n D"],
    labels: Int64[Tensor, " n"],
    classes: int,
    strength: float,
    *,
    start: Weights | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
) -> Weights:
    """Minimise sum of cross-entropies + |W|^2 / (2 C) by L-BFGS in float64, as scikit-learn's LogisticRegression does.

    Args:
        features: As they are, not normalised (official).
        labels: Classes 0, 1, ...
        classes: Their number.
        strength: C, inverse of the penalty.
        start: Where to begin: the solution of a nearby C saves most of the iterations.
        max_iterations: Of L-BFGS.
        tolerance: Largest entry of the gradient of the mean at which it is done.
    """
    x = F.pad(features.double(), (0, 1), value=1.0)
    weights = torch.zeros(classes, x.shape[1], dtype=torch.float64, device=x.device) if start is None else start.clone()
    weights.requires_grad_()
    penalty = 1 / (2 * strength * len(x))
    search = torch.optim.LBFGS(
        [weights],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-12,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        search.zero_grad()
        value = F.cross_entropy(x @ weights.T, labels) + penalty * weights[:, :-1].square().sum()
        value.backward()
        return value

    search.step(objective)
    return weights.detach()


def predict(features: Float[Tensor, "n D"], weights: Weights) -> Float[Tensor, "n C"]:
    """Probability of each class."""
    return (features.double() @ weights[:, :-1].T + weights[:, -1]).softmax(1)


def _accuracy(features: Tensor, labels: Tensor, weights: Weights) -> float:
    return (predict(features, weights).argmax(1) == labels).double().mean().item()


def evaluate_logistic(
    encoder: LayeredEncoder,
    train: Source,
    test: Source,
    source: str,
    config: LogisticConfig,
    *,
    processes: DistributedContext,
    folder: Path,
    say: Say = lambda _: None,
) -> Result:
    """Choose C on a part of the training images, fit again on all of them, measure on the test images.

    The path goes from the strongest penalty to the weakest, each fit starting where the last one ended. Every process
    computes the same fits; they share the extraction.

    Args:
        encoder: The model.
        train: Images to learn from.
        test: Images to be measured on.
        source: How the training images were named.
        config: Settings.
        processes: Share the extraction.
        folder: Features are stored in `features` below it.
        say: Takes a line of progress now and then.

    Raises:
        DataError: The classes do not fit; see `labelled.check_classes`.
    """
    check_classes(train, test)
    learnt, tested = (
        stored_features(
            encoder,
            part,
            folder / "features",
            Kind(config.size),
            processes=processes,
            batch_size=config.batch_size,
            workers=config.workers,
            say=say,
        )
        for part in (train, test)
    )
    assert learnt.labels is not None and tested.labels is not None
    x, y = learnt.features.to(processes.device).double(), learnt.labels.to(processes.device)
    classes = int(y.max()) + 1
    judge = _held_out(learnt.labels, config.heldout).to(x.device)
    low, high = config.exponents
    path = (10 ** torch.linspace(low, high, config.strengths, dtype=torch.float64)).tolist()
    found: list[float] = []
    weights: Weights | None = None
    for number, strength in enumerate(path):
        weights = fit_logistic(
            x[~judge],
            y[~judge],
            classes,
            strength,
            start=weights,
            max_iterations=config.max_iterations,
            tolerance=config.tolerance,
        )
        found.append(_accuracy(x[judge], y[judge], weights))
        if (number + 1) % max(1, len(path) // 5) == 0:
            say(f"{number + 1} of {len(path)} penalties, best {max(found):.3f} on held-out training images")
    best = path[found.index(max(found))]  # of equals the strongest penalty
    weights = fit_logistic(
        x, y, classes, best, max_iterations=config.max_iterations, tolerance=config.tolerance, start=weights
    )
    top1 = _accuracy(tested.features.to(x.device), tested.labels.to(x.device), weights)
    figures = {"top1": top1, "c": best, "held_out_top1": max(found)}
    notes = [
        f"C = {best:.3g} was chosen on {int(judge.sum())} held-out training images, then all were fitted.",
        *skipped_notes(learnt.skipped, tested.skipped),
    ]
    return Result(figures, "top1", to_dict(config), facts(source, train, test), notes)


def _held_out(labels: Int64[Tensor, " n"], share: float) -> Tensor:
    """True for a random share of each class, but not for its last image."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        mine = (labels == label).nonzero().flatten()
        count = min(len(mine) - 1, max(1, round(share * len(mine))))
        chosen[mine[torch.randperm(len(mine), generator=generator("held out", int(label)))[:count]]] = True
    return chosen
