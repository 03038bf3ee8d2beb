"""What the loader hands to the training loop."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int8, Int64
from torch import Tensor

from dinov2_zoo.data.drop_path import Kept


@dataclass(frozen=True)
class Skipped:
    """An image that could not be decoded."""

    sample_id: int
    """Its index in the source."""
    name: str
    """Its name in the source: a path, a member of a shard, a row."""
    reason: str
    """What is wrong with it, one sentence."""


@dataclass(frozen=True)
class Batch:
    """Crops of B images, normalised fp32."""

    global_crops: Float[Tensor, "2 B 3 G G"]
    """Both global crops."""
    local_crops: Float[Tensor, "L B 3 l l"]
    """Local crops; L may be 0."""
    sample_ids: Int64[Tensor, " B"]
    """Index in the source of the image that each crop was cut from."""
    seeds: Int64[Tensor, " B"]
    """A number per image and epoch: all that is drawn about the image later follows from it. Stays on the CPU."""
    step: int = 0
    """Optimizer step that this batch is for."""
    masks: Bool[Tensor, "2 B N"] | None = None
    """True where a patch of a global crop is to be hidden from the student; None hides none."""
    skipped: list[Skipped] = field(default_factory=list)
    """Images that should have been in this batch but could not be decoded; others took their places."""
    targets: list[Int8[Tensor, "V B F"]] | None = None
    """What a teacher said of each group's crops earlier, coded (`models.stored`); None: it is to be asked."""

    drop_path: list[Kept] | None = None
    """Which sequences of each group pass through each of the student's blocks; None: all."""

    def groups(self) -> list[Float[Tensor, "V B 3 S S"]]:
        """Crops of one size together: the global ones, and the local ones where there are some."""
        return [self.global_crops, self.local_crops] if len(self.local_crops) else [self.global_crops]

    def for_teacher(self) -> list[Tensor]:
        """What a teacher is given, a group each: the crops, or what it said of them earlier."""
        return self.groups() if self.targets is None else self.targets  # pyright: ignore[reportReturnType]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch with crops, ids and masks on `device`."""
        return replace(
            self,
            masks=None if self.masks is None else self.masks.to(device, non_blocking=non_blocking),
            global_crops=self.global_crops.to(device, non_blocking=non_blocking),
            local_crops=self.local_crops.to(device, non_blocking=non_blocking),
            sample_ids=self.sample_ids.to(device, non_blocking=non_blocking),
            targets=self.targets and [codes.to(device, non_blocking=non_blocking) for codes in self.targets],
            drop_path=self.drop_path
            and [kept.map(lambda x: x.to(device, non_blocking=non_blocking)) for kept in self.drop_path],
        )

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; torch's DataLoader calls it."""
        return replace(
            self,
            masks=None if self.masks is None else self.masks.pin_memory(),
            global_crops=self.global_crops.pin_memory(),
            local_crops=self.local_crops.pin_memory(),
            sample_ids=self.sample_ids.pin_memory(),
            targets=self.targets and [codes.pin_memory() for codes in self.targets],
            drop_path=self.drop_path and [kept.map(Tensor.pin_memory) for kept in self.drop_path],
        )
