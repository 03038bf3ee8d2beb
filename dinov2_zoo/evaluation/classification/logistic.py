"""Logistic regression on frozen features, its penalty chosen along a path (official `eval/log_regression.py`)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.classification import LogisticConfig
from dinov2_zoo.data.augment import generator
from dinov2_zoo.evaluation.classification.labelled import LabelledData, skipped_notes
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.feature_store import Kind, stored_features
from dinov2_zoo.evaluation.record import Result
from dinov2_zoo.evaluation.workspace import Workspace

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
    encoder: LayeredEncoder, data: LabelledData, config: LogisticConfig, workspace: Workspace
) -> Result:
    """Choose C on a part of the training images, fit again on all of them, measure on the test images.

    The path goes from the strongest penalty to the weakest, each fit starting where the last one ended. Every process
    computes the same fits; they share the extraction.

    Args:
        encoder: The model.
        data: Images to learn from and to be measured on.
        config: Settings.
        workspace: Processes share the extraction.
    """
    assert data.test is not None
    kind, options = Kind(config.size), {"batch_size": config.batch_size, "workers": config.workers}
    learnt, tested = (stored_features(encoder, part, kind, workspace, **options) for part in (data.train, data.test))
    assert learnt.labels is not None and tested.labels is not None
    x, y = learnt.features.to(workspace.device).double(), learnt.labels.to(workspace.device)
    classes = int(y.max()) + 1
    judge = _heldout(learnt.labels, config.heldout).to(x.device)
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
            workspace.say(f"{number + 1} of {len(path)} penalties, best {max(found):.3f} on held-out training images")
    best = path[found.index(max(found))]  # of equals the strongest penalty
    weights = fit_logistic(
        x, y, classes, best, max_iterations=config.max_iterations, tolerance=config.tolerance, start=weights
    )
    top1 = _accuracy(tested.features.to(x.device), tested.labels.to(x.device), weights)
    metrics = {"top1": top1, "c": best, "heldout_top1": max(found)}
    notes = [
        f"C = {best:.3g} was chosen on {int(judge.sum())} held-out training images, then all were fitted.",
        *skipped_notes(learnt.skipped, tested.skipped),
    ]
    return Result(metrics, "top1", {**to_dict(config), "split": data.split}, data.facts(), notes)


def _heldout(labels: Int64[Tensor, " n"], share: float) -> Tensor:
    """True for a random share of each class, but not for its last image."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        mine = (labels == label).nonzero().flatten()
        count = min(len(mine) - 1, max(1, round(share * len(mine))))
        chosen[mine[torch.randperm(len(mine), generator=generator("held out", int(label)))[:count]]] = True
    return chosen
