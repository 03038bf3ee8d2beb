"""How in-context segmentation is measured: masks by the vote of similar patches, nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

from dinov2_zoo.config.checks import check


@dataclass(frozen=True)
class InContextConfig:
    """The vote of the nearest labelled patches (Balazevic et al. 2023, Hummingbird).

    The paper's code is not public; numbers are those of the reproduction in use, open-hummingbird-eval.
    """

    size: int | None = None
    """Images are scaled to this short side, pixels, and both sides rounded to multiples of the patch; none: 512, or the
    data set's own. The ratio is kept (chosen here: the reproduction squeezes images to 504 x 504)."""
    memory: int = 102_400
    """Most labelled patches to keep, an equal number of each training image, those with rare classes first
    (open-hummingbird: 1024 x 100, its smallest; the paper's is a hundred times as large)."""
    neighbours: int = 30
    """Patches that vote (open-hummingbird)."""
    temperature: float = 0.02
    """Temperature of the vote: weights are a softmax of cosine / temperature (open-hummingbird)."""
    seed: int = 0
    """Of the choice of patches."""
    batch_size: int = 16
    """Images that are read together; those of one size share a forward pass. Changes nothing but speed."""
    workers: int = 4
    """Processes that read, per process that measures; 0: it reads itself."""

    def __post_init__(self) -> None:
        check(self.size is None or self.size >= 1, "in_context.size must be at least 1.")
        check(self.memory >= 1 and self.neighbours >= 1, "in_context.memory and neighbours must be at least 1.")
        check(self.temperature > 0, "in_context.temperature must be above 0.")
        check(self.batch_size >= 1 and self.workers >= 0, "in_context.batch_size must be at least 1, workers 0.")
