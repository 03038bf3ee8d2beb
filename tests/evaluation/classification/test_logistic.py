"""Logistic regression: scikit-learn's optimum, warm starts, and an honest choice of the penalty."""

import numpy as np
import pytest
import torch
from colour_folders import colours
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from stand_ins import tiny_encoder, workspace

from dinov2_zoo.config.classification import LogisticConfig
from dinov2_zoo.evaluation.classification.labelled import LabelledData
from dinov2_zoo.evaluation.classification.logistic import evaluate_logistic, fit_logistic, predict


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:600] / 16), torch.tensor(y[:600])


@pytest.mark.parametrize("strength", [1e-2, 1.0, 100.0])
def test_probabilities_are_scikit_learns(digits, strength):
    x, y = digits
    weights = fit_logistic(x, y, 10, strength, tolerance=1e-8)
    theirs = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(x.numpy(), y.numpy())
    assert np.abs(predict(x, weights).numpy() - theirs.predict_proba(x.numpy())).max() < 1e-3


def test_a_warm_start_ends_at_the_same_optimum(digits):
    x, y = digits
    cold = fit_logistic(x, y, 10, 1.0, tolerance=1e-9)
    warm = fit_logistic(x, y, 10, 1.0, start=fit_logistic(x, y, 10, 0.3), tolerance=1e-9)
    assert (predict(x, cold) - predict(x, warm)).abs().max() < 1e-4


def test_colours_are_told_apart_and_the_penalty_is_named(tmp_path):
    train, test = colours(tmp_path / "train", count=10), colours(tmp_path / "test", count=3)
    config = LogisticConfig(strengths=6, size=28)
    data = LabelledData(train, test, "folder")
    result = evaluate_logistic(tiny_encoder(), data, config, workspace(tmp_path / "out"))
    assert result.metrics["top1"] == 1.0
    assert "held-out training images" in result.notes[0] and f"{result.metrics['c']:.3g}" in result.notes[0]
    assert result.metrics["c"] in [pytest.approx(10**e) for e in np.linspace(-6, 5, 6)]
