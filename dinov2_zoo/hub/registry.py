"""Published models by short name: where they are, what they were trained on, what they reach."""

from dataclasses import dataclass

import torch

from dinov2_zoo.models.vision_transformer import VisionTransformer
from dinov2_zoo.models.zoo import MODELS


@dataclass(frozen=True)
class Entry:
    """One published model."""

    name: str
    """Short name, which `Dinov2Model.from_pretrained` takes; its shape is the architecture of that name."""
    repository: str
    """Hub id."""
    teacher: str
    """What it was distilled from; "none" where it was trained by self-distillation."""
    knn: float
    """ImageNet-1k top-1 by k-NN, percent."""
    linear: float
    """ImageNet-1k top-1 by a linear probe, percent."""
    source: str
    """Where the two figures come from: nothing here was measured by us."""
    revision: str | None = None
    """Commit that is fetched when none is asked for; None: the newest, for we have not seen any to pin."""
    sha256: str | None = None
    """Checksum of model.safetensors at that commit; what is fetched is compared with it."""
    data: str = "LVD-142M"
    """Images of the training."""
    resolution: int = 518
    """Image side of the last phase, pixels."""
    author: str = "Meta AI"
    licence: str = "apache-2.0"
    """The Hub's identifier. Meta has given the weights under it since 2023-08-31."""
    images_per_second: float | None = None
    """At 224 pixels on what `SPEED_ON` names; random weights of the same shape are as fast."""

    @property
    def parameters(self) -> int:
        """Number of parameters of the backbone, mask token included."""
        with torch.device("meta"):
            model = VisionTransformer(MODELS[self.name])
        return sum(p.numel() for p in model.parameters())


SPEED_ON = "fp32, one thread of an AMD EPYC, `python benchmarks/inference.py`"
"""What the speeds were measured on."""

_PAPER = "paper, Table 4"
_CARD = "Meta's MODEL_CARD"
_META = "facebook/dinov2"
_G = "ViT-g/14"

# Meta's models: distilled from ViT-g/14, all but that one. (name, repository, teacher, k-NN, linear, source)
_ROWS = (
    ("vits14", f"{_META}-small", _G, 79.0, 81.1, _PAPER),
    ("vitb14", f"{_META}-base", _G, 82.1, 84.5, _PAPER),
    ("vitl14", f"{_META}-large", _G, 83.5, 86.3, _PAPER),
    ("vitg14", f"{_META}-giant", "none", 83.5, 86.5, _PAPER),
    ("vits14_reg4", f"{_META}-with-registers-small", f"{_G} reg4", 79.1, 80.9, _CARD),
    ("vitb14_reg4", f"{_META}-with-registers-base", f"{_G} reg4", 82.0, 84.6, _CARD),
    ("vitl14_reg4", f"{_META}-with-registers-large", f"{_G} reg4", 83.8, 86.7, _CARD),
    ("vitg14_reg4", f"{_META}-with-registers-giant", "none", 83.7, 87.1, _CARD),
)

# Measured on the shape: registers make no difference that could be seen.
_IMAGES_PER_SECOND = {"s": 5.8, "b": 1.6, "l": 0.45, "g": 0.11}

REGISTRY = {row[0]: Entry(*row, images_per_second=_IMAGES_PER_SECOND[row[0][3]]) for row in _ROWS}
"""Published models by short name."""
