"""What the loader hands to the training loop."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int8, Int64
from torch import Tensor

from dinov2_zoo.data.drop_path import Kept
from dinov2_zoo.data.positions import masked_positions


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
    positions: Int64[Tensor, " n"] | None = None
    """Which of the 2 x B x N patches of the global crops, in this order, a loss on some of them looks at; None: all."""
    weights: Float[Tensor, " n"] | None = None
    """How much each of them counts; None: all the same."""
    drop_path: list[Kept] | None = None
    """Which sequences of each group pass through each of the student's blocks; None: all."""
    logged: bool = True
    """Whether a line of the log follows its step: what is only looked at need not be computed in others."""

    def hiding(self, masks: Bool[Tensor, "2 B N"]) -> "Batch":
        """The same batch with these patches hidden from the student, and the loss on them."""
        positions, weights = masked_positions(masks)
        return replace(self, masks=masks, positions=positions, weights=weights)

    def groups(self) -> list[Float[Tensor, "V B 3 S S"]]:
        """Crops of one size together: the global ones, and the local ones where there are some."""
        return [self.global_crops, self.local_crops] if len(self.local_crops) else [self.global_crops]

    def for_teacher(self) -> list[Tensor]:
        """What a teacher is given, a group each: the crops, or what it said of them earlier."""
        return self.groups() if self.targets is None else self.targets  # pyright: ignore[reportReturnType]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on `device`, but for the seeds."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, but for the seeds; torch's DataLoader calls it."""
        return self._map(Tensor.pin_memory)

    def _map(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        names = ("global_crops", "local_crops", "sample_ids", "masks", "positions", "weights")
        tensors = {name: tensor for name in names if (tensor := getattr(self, name)) is not None}
        moved = {name: move(tensor) for name, tensor in tensors.items()}
        targets = self.targets and [move(codes) for codes in self.targets]
        return replace(
            self, **moved, targets=targets, drop_path=self.drop_path and [k.map(move) for k in self.drop_path]
        )
