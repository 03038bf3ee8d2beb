"""What the loader hands to the training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int8, Int64, Shaped
from torch import Tensor

from dinov2_zoo.data.colour import ColourPlan
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
    """Crops of B images: 8-bit as they leave the workers, normalised fp32 as training takes them (`data.device`)."""

    global_crops: Shaped[Tensor, "2 B 3 G G"]
    """Both global crops."""
    local_crops: Shaped[Tensor, "L B 3 l l"]
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
    colours: tuple[ColourPlan, ...] = ()
    """What is still to be done to the colours of each group's 8-bit crops, V * B in a row."""
    seconds: float = 0.0
    """That one process took to make it."""

    def hiding(self, masks: Bool[Tensor, "2 B N"]) -> "Batch":
        """The same batch with these patches hidden from the student, and the loss on them."""
        positions, weights = masked_positions(masks)
        return replace(self, masks=masks, positions=positions, weights=weights)

    def groups(self) -> list[Shaped[Tensor, "V B 3 S S"]]:
        """Crops of one size together: the global ones, and the local ones where there are some."""
        return [self.global_crops, self.local_crops] if len(self.local_crops) else [self.global_crops]

    def for_teacher(self) -> list[Tensor]:
        """What a teacher is given, a group each: the crops, or what it said of them earlier."""
        return self.groups() if self.targets is None else self.targets  # pyright: ignore[reportReturnType]

    def map(self, action: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with every tensor but `seeds` as `action` returns it: moved, pinned."""
        names = ("global_crops", "local_crops", "sample_ids", "masks", "positions", "weights")
        tensors = {name: tensor for name in names if (tensor := getattr(self, name)) is not None}
        return replace(
            self,
            **{name: action(tensor) for name, tensor in tensors.items()},
            targets=self.targets and [action(codes) for codes in self.targets],
            drop_path=self.drop_path and [kept.map(action) for kept in self.drop_path],
            colours=tuple(plan.map(action) for plan in self.colours),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch with all but `seeds` on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; torch's DataLoader calls it."""
        return self.map(Tensor.pin_memory)


def seeds_of(batches: Sequence[Batch]) -> Int64[Tensor, " B"]:
    """The seeds of some batches, one after the other; on the CPU, as they are."""
    return torch.cat([batch.seeds for batch in batches]) if len(batches) > 1 else batches[0].seeds
