"""Training batches that depend on the step alone: not on processes, workers, accumulation or restarts.

The images of all epochs form one endless line; step s of batch size G takes positions s*G .. (s+1)*G - 1 of it, and
processes cut that range among them, and each its part into micro-batches. Position p is image number p mod n of epoch
p // n, in an order drawn from (seed, epoch). So a restart needs no state but the step.

With a teacher's stored targets, epoch e is stored epoch e mod E again: the same order, the same crops, cut again, with
what the teacher said of them.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Int8, UInt8
from torch import Tensor

from dinov2_zoo.config import CropConfig, LoaderConfig, MaskConfig
from dinov2_zoo.data.augment import generator, seed_of
from dinov2_zoo.data.batch import Batch, Skipped
from dinov2_zoo.data.colour import ColourPlan
from dinov2_zoo.data.crops import MultiCrop, multi_crop
from dinov2_zoo.data.decode import DecodeError
from dinov2_zoo.data.device import OnDevice
from dinov2_zoo.data.drop_path import DropPath, Kept, Share, draw_kept
from dinov2_zoo.data.finishing import FinishingStage
from dinov2_zoo.data.masks import block_mask, check_grid, stratified_ratios
from dinov2_zoo.data.mixing import mix
from dinov2_zoo.data.order import epoch_order
from dinov2_zoo.data.positions import sampled_positions
from dinov2_zoo.data.sources import Source
from dinov2_zoo.data.workers import MadeAhead
from dinov2_zoo.errors import ConfigError, DataError

# Images tried in place of one that cannot be decoded: so many damaged ones in a row are no accident.
MAX_TRIES = 100

UNSTORED = "It could not be decoded when the teacher's targets were stored: store them again to use it."


class Place(NamedTuple):
    """A position in the endless line of images."""

    epoch: int
    slot: int
    """Position within the epoch's order, 0 to n - 1."""


class Targets(Protocol):
    """What a teacher said of crops, stored (`targets.reader`). Picklable, for workers that are spawned."""

    @property
    def epochs(self) -> int:
        """Epochs that are stored, E."""
        ...

    def read(self, epoch: int, sample_id: int, /) -> list[Int8[Tensor, "V F"]] | None:
        """Codes of an image's crops in a stored epoch, a group each; None: the image could not be decoded then."""
        ...


def train_loader(
    source: Source,
    crops: CropConfig,
    loader: LoaderConfig,
    *,
    seed: int,
    masks: MaskConfig | None = None,
    stage: FinishingStage | None = None,
    drop_path: DropPath | None = None,
    patch_share: float = 1.0,
    patch_size: int = 14,
    accumulate: int = 1,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    steps: int,
    targets: Targets | None = None,
    device: torch.device | str = "cpu",
) -> OnDevice:
    """This process's micro-batches for steps `start_step` to `steps` - 1, `accumulate` per step.

    Every sample and pixel is the same whatever the number of processes, workers and micro-batches, and after a restart.
    An image that cannot be decoded is replaced by the next of the epoch's order that can, and reported in the batch.

    Args:
        source: Images.
        crops: How to cut them.
        loader: Batch size per optimizer step over all processes and micro-batches; worker processes.
        seed: Of the order, the crops and the masks.
        masks: Which patches of the global crops to hide from a student; None: none.
        stage: From its first step on global crops have its largest side; None: they never change.
        drop_path: Stochastic depth of the student that the batches are for; None: it has none.
        patch_share: Share of the global crops' patches that a loss looks at, drawn for each crop; 1: all.
        patch_size: Side of a patch, pixels: of the grids that masks are, and that patches are drawn from.
        accumulate: Micro-batches per optimizer step.
        rank: Number of this process.
        world_size: Processes.
        start_step: Finished steps.
        steps: Steps of the whole run.
        targets: What a teacher said of these images' crops, for the same `crops` and `seed`; None: nothing is stored.
        device: Where the batches are to be.

    Raises:
        ConfigError: The batch does not divide among processes and micro-batches, or masks cannot be placed.
        DataError: The source is smaller than a batch; while iterating: hardly an image decodes, or a worker died.
    """
    share = accumulate * world_size
    if loader.batch_size % share:
        low = loader.batch_size // share * share
        sizes = f"{low} or {low + share}" if low else f"{share}"
        raise ConfigError(
            f"loader.batch_size {loader.batch_size} does not divide among {world_size} processes x {accumulate} "
            f"micro-batches: use {sizes}."
        )
    if len(source) < loader.batch_size:
        raise DataError(
            f"{len(source)} images are fewer than one batch of {loader.batch_size}: "
            "lower loader.batch_size, or give more images."
        )
    side = crops.global_size // patch_size
    if masks is not None:
        check_grid(side, masks)
    device = torch.device(device)
    make = _Crops(
        source,
        crops,
        loader.batch_size,
        seed,
        masks,
        side,
        stage=stage,
        targets=targets,
        drop_path=drop_path,
        share=patch_share,
        coloured=loader.colours_by(device.type, crops) == "workers",
    )
    places = _Places(len(source), loader.batch_size, accumulate, rank, world_size, start_step, steps)
    lower = "loader.workers, loader.prefetch or loader.batch_size"
    made = MadeAhead(make, places, loader.workers, prefetch=loader.prefetch, lower=lower)
    return OnDevice(made, device)


def crops_at(
    source: Source,
    crops: CropConfig,
    places: Sequence[list[Place]],
    *,
    seed: int,
    loader: LoaderConfig,
    device: torch.device | str = "cpu",
) -> OnDevice:
    """The crops that `train_loader` makes at some places of its line of images, one batch for each list of places."""
    device = torch.device(device)
    coloured = loader.colours_by(device.type, crops) == "workers"
    make = _Crops(source, crops, len(source), seed, None, 0, coloured=coloured)
    lower = "loader.workers, loader.prefetch or the batch"
    return OnDevice(MadeAhead(make, places, loader.workers, prefetch=loader.prefetch, lower=lower), device)


class _Places:
    """The batch sampler: which places this process's micro-batches take, in turn."""

    def __init__(
        self, length: int, batch_size: int, accumulate: int, rank: int, world_size: int, start_step: int, steps: int
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step
        self.steps = steps

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Place]]:
        mine = self.batch_size // self.accumulate // self.world_size
        for step in range(self.start_step, self.steps):
            for part in range(self.accumulate):
                first = step * self.batch_size + (self.rank * self.accumulate + part) * mine
                yield [Place(*divmod(position, self.length)) for position in range(first, first + mine)]


class _Sample(NamedTuple):
    """All that a batch has of one image."""

    sample_id: int
    crops: MultiCrop
    targets: list[Int8[Tensor, "V F"]] | None


class _Crops:
    """Makes whole batches."""

    def __init__(
        self,
        source: Source,
        crops: CropConfig,
        batch_size: int,
        seed: int,
        masks: MaskConfig | None,
        side: int,
        *,
        stage: FinishingStage | None = None,
        targets: Targets | None = None,
        drop_path: DropPath | None = None,
        share: float = 1.0,
        coloured: bool = True,
    ) -> None:
        self.source = source
        self.crops = crops
        self.batch_size = batch_size
        self.seed = seed
        self.masks = masks
        self.side = side
        self.stage = stage
        self.targets = targets
        self.drop_path = drop_path
        self.share = share
        self.coloured = coloured

    def __call__(self, places: list[Place]) -> Batch:
        started, config = time.perf_counter(), self.crops
        step, first = divmod(places[0].epoch * len(self.source) + places[0].slot, self.batch_size)
        if self.stage is not None:
            config = replace(config, global_size=self.stage.cut(step, config.global_size))
        skipped: list[Skipped] = []
        samples = self._samples(places, config, skipped)
        ids = [sample.sample_id for sample in samples]
        seeds = [seed_of("image", self.seed, place.epoch, i) for place, i in zip(places, ids, strict=True)]
        taught = [sample.targets or [] for sample in samples]
        batch = Batch(
            self._stacked([sample.crops.large for sample in samples]),
            self._stacked([sample.crops.small for sample in samples]),
            torch.tensor(ids),
            torch.tensor(seeds),
            step,
            skipped=skipped,
            targets=None if self.targets is None else [torch.stack(group, 1) for group in zip(*taught, strict=True)],
            drop_path=self._kept(step, first, len(places)),
            colours=() if self.coloured else _plans([sample.crops for sample in samples]),
        )
        if self.masks is not None:
            batch = batch.hiding(self._hide(self.masks, step, first, places, ids))
        elif self.share < 1:
            batch = replace(batch, positions=sampled_positions(batch.seeds, 2, self.side**2, self.share))
        return replace(batch, seconds=time.perf_counter() - started)

    def _kept(self, step: int, first: int, count: int) -> list[Kept] | None:
        """The sequences that pass through each of the student's blocks."""
        if self.drop_path is None:
            return None
        views = [2, self.crops.local_count] if self.crops.local_count else [2]
        return draw_kept(self.drop_path, views, Share(step, first, count, self.batch_size))

    def _stacked(self, crops: list[UInt8[Tensor, "V 3 S S"]]) -> UInt8[Tensor, "V B 3 S S"]:
        """Crops of all images, with the memory's order that those of each have."""
        if self.coloured:
            return torch.stack(crops, 1)
        return torch.stack([each.permute(0, 2, 3, 1) for each in crops], 1).permute(0, 1, 4, 2, 3)

    def _hide(
        self, config: MaskConfig, step: int, first: int, places: list[Place], ids: list[int]
    ) -> Bool[torch.Tensor, "2 B N"]:
        """Masks of both global crops. How much is hidden is settled for the whole step; where, for each crop alone."""
        size = self.batch_size
        ratios = stratified_ratios(2 * size, config, generator("mask ratios", self.seed, step)).view(2, size)
        return torch.stack(
            [
                block_mask(self.side, ratio, config, generator("mask", self.seed, place.epoch, sample_id, view))
                for view in range(2)
                # Behind the ratios of this part of the step stand those of the parts that follow.
                for place, sample_id, ratio in zip(places, ids, ratios[view, first:].tolist(), strict=False)
            ]
        ).unflatten(0, (2, len(places)))

    def _samples(self, places: list[Place], config: CropConfig, skipped: list[Skipped]) -> list[_Sample]:
        """What the batch has of each place; mixed, if that is asked for, with the epoch's next place."""
        if self.targets is not None:
            places = [place._replace(epoch=place.epoch % self.targets.epochs) for place in places]
        found = {place: self._sample(place, config, skipped) for place in places}
        if not config.mix:
            return [found[place] for place in places]
        mixed: list[_Sample] = []
        for place in places:
            mine, after = found[place], place._replace(slot=(place.slot + 1) % len(self.source))
            other = found.get(after) or self._sample(after, config, [])
            key = self.seed, place.epoch, mine.sample_id
            large = mix(mine.crops.large, other.crops.large, config.mix, *key, "global")
            small = mix(mine.crops.small, other.crops.small, config.mix, *key, "local")
            mixed.append(mine._replace(crops=mine.crops._replace(large=large, small=small)))
        return mixed

    def _sample(self, place: Place, config: CropConfig, skipped: list[Skipped]) -> _Sample:
        """Crops of the image at a place, or of the next good one after it in the same epoch."""
        length, targets = len(self.source), None
        order = epoch_order(length, self.seed, place.epoch)
        tries = min(MAX_TRIES, length)
        for step in range(tries):
            sample_id = order[(place.slot + step) % length]
            key = {"seed": self.seed, "epoch": place.epoch, "sample_id": sample_id}
            try:
                crops = multi_crop(self.source.read(sample_id), config, **key, coloured=self.coloured)
            except DecodeError as error:
                skipped.append(Skipped(sample_id, self.source.name(sample_id), str(error)))
                continue
            if self.targets is not None:
                targets = self.targets.read(place.epoch, sample_id)
                if targets is None:
                    skipped.append(Skipped(sample_id, self.source.name(sample_id), UNSTORED))
                    continue
            return _Sample(sample_id, crops, targets)
        last = skipped[-1]
        raise DataError(
            f"{tries} images in a row could not be decoded; the last one is {last.name}: {last.reason} "
            "Check that the images are what and where they should be."
        )


def _plans(crops: Sequence[MultiCrop]) -> tuple[ColourPlan, ...]:
    """What is to be done to a batch's global crops, and to its local ones: all first views, all second ones, ..."""
    return tuple(
        ColourPlan.of([steps for view in zip(*group, strict=True) for steps in view])
        for group in zip(*(each.colours for each in crops), strict=True)
    )
