"""How classification is measured on frozen features: k-NN, linear probes, logistic regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinov2_zoo.config.checks import check

# The official code's learning rates, before they are scaled by batch / 256.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)


@dataclass(frozen=True)
class KnnConfig:
    """Weighted k-nearest-neighbour vote on class tokens (official `eval/knn.py`)."""

    k: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbours, all measured in one pass (official)."""
    temperature: float = 0.07
    """Temperature of the vote (official)."""
    shots: tuple[int, ...] = ()
    """Training images per class for few-shot tries, beside the full set; () for none."""
    tries: int = 5
    """Random choices of training images for each number of shots (chosen here)."""
    size: int = 224
    """Image side, pixels (official)."""
    batch_size: int = 64
    """Images per forward pass and process; changes nothing but speed."""
    workers: int = 4
    """Processes that decode, per process that measures; 0: it decodes itself."""

    def __post_init__(self) -> None:
        check(bool(self.k) and min(self.k) >= 1, "knn.k must hold numbers of at least 1.")
        check(self.temperature > 0, "knn.temperature must be above 0.")
        check(all(n >= 1 for n in self.shots) and self.tries >= 1, "knn.shots and knn.tries must be at least 1.")
        check(self.size >= 1 and self.batch_size >= 1, "knn.size and knn.batch_size must be at least 1.")


@dataclass(frozen=True)
class LinearConfig:
    """Linear probes trained all at once on one pass of the frozen backbone (paper B.3, official `eval/linear.py`)."""

    steps: int = 12_500
    """Steps of SGD (official: 10 epochs of 1,250)."""
    batch_size: int = 1024
    """Images per step over all processes (official: 128 on each of 8)."""
    rates: tuple[float, ...] = RATES
    """Learning rates of the grid, each scaled by batch_size / 256 (official code)."""
    blocks: tuple[int, ...] = (1, 4)
    """How many last blocks' class tokens a probe reads (paper, official)."""
    path: Literal["augmented", "cached"] = "augmented"
    """"augmented": random crops and flips through the backbone at every step (paper). "cached": features of the
    unaugmented images, computed once: far cheaper, and a little lower."""
    choose_on: Literal["test", "heldout"] = "test"
    """Which images choose the winner among the probes: "test", as the official code does and thus all published
    results, or "heldout", a tenth of the training images that no probe sees."""
    size: int = 224
    """Image side, pixels (official)."""
    pass_size: int = 64
    """Images per forward pass of feature extraction; changes nothing but speed."""
    workers: int = 4
    """Processes that decode, per process that measures; 0: it decodes itself."""
    save_every: int = 1000
    """Steps between saves of the probes."""

    def __post_init__(self) -> None:
        check(self.steps >= 1 and self.batch_size >= 1, "linear.steps and linear.batch_size must be at least 1.")
        check(bool(self.rates) and min(self.rates) > 0, "linear.rates must hold numbers above 0.")
        check(bool(self.blocks) and min(self.blocks) >= 1, "linear.blocks must hold numbers of at least 1.")
        check(self.size >= 1 and self.pass_size >= 1, "linear.size and linear.pass_size must be at least 1.")


@dataclass(frozen=True)
class LogisticConfig:
    """L2-regularised logistic regression on class tokens (official `eval/log_regression.py`)."""

    strengths: int = 45
    """Inverse penalties C, spaced evenly in the exponent over `exponents` (official)."""
    exponents: tuple[float, float] = (-6.0, 5.0)
    """Range of log10 C (official)."""
    max_iterations: int = 1000
    """Most iterations of L-BFGS for each C (official)."""
    tolerance: float = 1e-6
    """Largest gradient entry at which a fit counts as done (chosen here: accuracies no longer change)."""
    heldout: float = 0.1
    """Share of each class in the training images that chooses C (official: a tenth of them)."""
    size: int = 224
    """Image side, pixels (official)."""
    batch_size: int = 64
    """Images per forward pass and process; changes nothing but speed."""
    workers: int = 4
    """Processes that decode, per process that measures; 0: it decodes itself."""

    def __post_init__(self) -> None:
        check(self.strengths >= 1 and self.max_iterations >= 1, "logistic.strengths must be at least 1.")
        check(0 < self.heldout < 1, "logistic.heldout must lie between 0 and 1.")
        check(self.tolerance > 0, "logistic.tolerance must be above 0.")
