"""In-context segmentation: a patch is what the most similar patches of labelled images are (Balazevic et al. 2023)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.in_context import InContextConfig
from dinov2_zoo.data.augment import generator
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.dense.maps import patch_maps, resized, view_size, whole_patches
from dinov2_zoo.evaluation.dense.pairs import PairSource
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.reading import Place, cut, read_ahead
from dinov2_zoo.evaluation.in_context.memory import Memory, chosen_patches, patch_counts
from dinov2_zoo.evaluation.record import Result
from dinov2_zoo.evaluation.segmentation.augment import scaled_size
from dinov2_zoo.evaluation.segmentation.metrics import Confusion
from dinov2_zoo.evaluation.segmentation.readers import SegmentationData
from dinov2_zoo.evaluation.workspace import Workspace


@dataclass(frozen=True)
class Masked:
    """A photo at the size in which the model sees it, and its mask."""

    index: int
    image: Float[Tensor, "3 h w"]
    """Normalised."""
    mask: Int64[Tensor, "H W"]
    """At its full size."""


@dataclass(frozen=True)
class ReadMasked:
    """Makes batches of photos with masks.

    Raises:
        DataError: When called: a pair cannot be read.
    """

    source: PairSource
    short_side: int
    """Pixels."""
    patch: int
    """Pixels."""

    def __call__(self, places: list[Place]) -> list[Masked]:
        """Read and scale some pairs."""
        found: list[Masked] = []
        for place in places:
            photo, mask = self.source.read(place.item)
            sides = whole_patches(scaled_size(photo.width, photo.height, self.short_side), self.patch)
            found.append(Masked(place.item, resized(photo, sides), mask))
        return found


def remember(encoder: LayeredEncoder, data: SegmentationData, config: InContextConfig, workspace: Workspace) -> Memory:
    """Collect labelled patches of the training images, the same on every process and for any number of them.

    Raises:
        DataError: No pixel is labelled, or all patches show one class.
    """
    context, count = workspace.context, len(data.train)
    order = torch.randperm(count, generator=generator("memory", config.seed))[: config.memory].tolist()
    each = config.memory // max(1, len(order))
    read = ReadMasked(data.train, config.size or data.short_side, encoder.patch_size)
    mine = cut(sorted(order)[context.rank :: context.world_size], config.batch_size, config.workers)
    kept: list[tuple[int, Tensor, Tensor]] = []
    for batch in read_ahead(read, mine, config.workers):
        for item, tokens in zip(batch, patch_maps(encoder, [item.image for item in batch]), strict=True):
            counts = patch_counts(item.mask, (tokens.shape[1], tokens.shape[2]), data.classes)
            chosen = chosen_patches(counts, each, generator("memory", config.seed, item.index))
            features = tokens.flatten(1).T[chosen.to(tokens.device)].half().cpu()
            kept.append((item.index, features, F.normalize(counts[chosen].float(), p=1, dim=1)))
    parts = sorted((part for parts in context.gather(kept) for part in parts), key=lambda part: part[0])
    labels = torch.cat([part[2] for part in parts]) if parts else torch.empty(0, data.classes)
    present = int((labels.sum(0) > 0).sum())
    if present < 2:
        raise DataError(
            f"The training masks of {data.source or 'the data set'} show {present} of {data.classes} classes: a vote "
            "needs two or more, so give masks that show them."
        )
    workspace.say(f"{len(labels):,} labelled patches of {len(parts):,} images")
    return Memory(torch.cat([part[1] for part in parts]).to(workspace.device), labels.to(workspace.device))


def evaluate_in_context(
    encoder: LayeredEncoder, data: SegmentationData, config: InContextConfig, workspace: Workspace
) -> Result:
    """Segment the test images by the vote of similar patches; the headline is mean IoU.

    Shares of classes are enlarged bilinearly to the size of the mask, so masks are judged at their full size. Besides,
    `patch_neighbours` is the share of a test patch's neighbours that show what it shows itself.

    Args:
        encoder: The model; last block's patch tokens with the final norm.
        data: Images with masks.
        config: Settings.
        workspace: Processes share the images; nothing is kept.

    Raises:
        DataError: A file is missing or does not fit, or the masks show fewer than two classes.
        ConfigError: Images are to be smaller than a patch.
    """
    size = config.size or data.short_side
    view_size(size, encoder.patch_size, "in_context.size")
    context = workspace.context
    memory = remember(encoder, data, config, workspace)
    confusion = Confusion(data.classes)
    alike = torch.zeros(2, dtype=torch.float64)
    mine = range(context.rank, len(data.test), context.world_size)
    read = ReadMasked(data.test, size, encoder.patch_size)
    for batch in read_ahead(read, cut(mine, config.batch_size, config.workers), config.workers):
        for item, tokens in zip(batch, patch_maps(encoder, [item.image for item in batch]), strict=True):
            grid = (tokens.shape[1], tokens.shape[2])
            voted, among = memory.votes(
                tokens.flatten(1).T, neighbours=config.neighbours, temperature=config.temperature
            )
            large = F.interpolate(voted.T.unflatten(1, grid)[None], item.mask.shape, mode="bilinear")[0]
            confusion.add(large.argmax(0).cpu(), item.mask)
            counts = patch_counts(item.mask, grid, data.classes)
            labelled = counts.sum(1) > 0
            same = among.cpu().gather(1, counts.argmax(1, keepdim=True))[labelled]
            alike += torch.tensor([same.sum().item(), len(same)], dtype=torch.float64)
    confusion.counts = context.sum(confusion.counts.to(workspace.device)).cpu()
    same, patches = context.sum(alike.to(workspace.device)).tolist()
    if not patches:
        raise DataError(f"The test masks of {data.source or 'the data set'} have no labelled pixel: correct them.")
    protocol = {**to_dict(config), "size": size, "kept": len(memory.labels)}
    notes = ["Last block, final norm, patch tokens; exact neighbours; the training images are not augmented."]
    return Result({**confusion.metrics(), "patch_neighbours": same / patches}, "miou", protocol, data.facts(), notes)
