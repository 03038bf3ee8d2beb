"""Mean intersection over union: of all pixels of a data set together, class by class, then the mean over classes."""

import torch
from jaxtyping import Int64
from torch import Tensor

IGNORED = 255
"""Class number of pixels that do not count."""


class Confusion:
    """Counts of pixels by (true class, found class).

    Args:
        classes: Their number.
    """

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, found: Int64[Tensor, "H W"], truth: Int64[Tensor, "H W"]) -> None:
        """Count an image; pixels whose true class is `IGNORED` are left out."""
        classes = len(self.counts)
        counted = truth != IGNORED
        pairs = truth[counted] * classes + found[counted]
        self.counts += torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()

    def metrics(self) -> dict[str, float]:
        """miou, accuracy of pixels, mean_accuracy of classes; 0..1.

        A class that occurs neither in the masks nor in the predictions is left out of miou, as in mmseg; one that is
        only predicted counts as 0. mean_accuracy is over the classes that occur in the masks.
        """
        counts = self.counts.double()
        hits, true, found = counts.diag(), counts.sum(1), counts.sum(0)
        union = true + found - hits
        seen = true > 0
        return {
            "miou": (hits[union > 0] / union[union > 0]).mean().item(),
            "accuracy": (hits.sum() / counts.sum()).item(),
            "mean_accuracy": (hits[seen] / true[seen]).mean().item(),
        }
