"""Semantic segmentation on frozen features, from training a head to mean IoU (paper 7.4, released configs)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.segmentation import SegmentationConfig
from dinov2_zoo.data.preprocess import normalise, to_uint8
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.evaluation.dense.padding import pad, unpad
from dinov2_zoo.evaluation.dense.pairs import PairBatch, ReadPairs
from dinov2_zoo.evaluation.dense.training import Schedule, train_head, warmup
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.record import Result, checksum
from dinov2_zoo.evaluation.segmentation.augment import SegmentationAugmentation, scaled_size
from dinov2_zoo.evaluation.segmentation.head import linear_head
from dinov2_zoo.evaluation.segmentation.metrics import IGNORED, Confusion
from dinov2_zoo.evaluation.segmentation.readers import SegmentationData
from dinov2_zoo.evaluation.segmentation.slide import slide
from dinov2_zoo.evaluation.workspace import Workspace

MS_BLOCKS = 4
"""Last blocks that "+ms" reads, side by side (released notebook)."""
MS_SCALE = 1.25
"""Short side and crop of "+ms" beside those of "linear": 640 for 512 (official)."""


def token_maps(encoder: LayeredEncoder, images: Float[Tensor, "B 3 H W"], blocks: int) -> Float[Tensor, "B C h w"]:
    """Normed patch tokens of the last blocks side by side, of images whose sides are multiples of the patch."""
    layers = encoder.layers(images, range(encoder.depth - blocks, encoder.depth), norm=True)
    return torch.cat([layer.patches for layer in layers], 1)


def pixel_logits(
    encoder: LayeredEncoder, head: nn.Module, images: Float[Tensor, "B 3 H W"], blocks: int
) -> Float[Tensor, "B K H W"]:
    """Scores of every pixel: those of the tokens enlarged, without what was padded around the image."""
    whole = pad(images, encoder.patch_size)
    scores = head(token_maps(encoder, whole, blocks))
    large = F.interpolate(scores, whole.shape[2:], mode="bilinear", align_corners=False)
    return unpad(large, images.shape[2], images.shape[3])


@dataclass(frozen=True)
class Viewing:
    """How the photos of a test are looked at."""

    short_side: int
    """Short side of the scaled photo at ratio 1, pixels."""
    window: int
    """Side of the sliding window, pixels."""
    stride: int
    """Distance between neighbouring windows, pixels."""
    ratios: tuple[float, ...] = (1.0,)
    """Scales whose probabilities are averaged."""
    flip: bool = False
    """Add each scale's mirror image."""
    batch: int = 8
    """Windows at a time; changes nothing but speed."""


@torch.no_grad()
def segment(
    encoder: LayeredEncoder, head: nn.Module, photo: Image.Image, blocks: int, viewing: Viewing
) -> Int64[Tensor, "H W"]:
    """Class of every pixel of a photo: probabilities averaged over scales and mirror images.

    Args:
        encoder: The model.
        head: Trained for it.
        photo: RGB.
        blocks: Last blocks that the head reads.
        viewing: Scales and windows.
    """
    pixels = to_uint8(photo)
    total: Tensor | None = None
    for ratio in viewing.ratios:
        size = scaled_size(photo.width, photo.height, viewing.short_side * ratio)
        image = normalise(tv.resize(pixels, size, InterpolationMode.BILINEAR, antialias=True)).to(encoder.device)
        for mirrored in (False, True) if viewing.flip else (False,):
            logits = slide(
                lambda windows: pixel_logits(encoder, head, windows, blocks),
                image.flip(2) if mirrored else image,
                window=viewing.window,
                stride=viewing.stride,
                batch=viewing.batch,
            )
            logits = logits.flip(2) if mirrored else logits
            large = F.interpolate(logits[None], (photo.height, photo.width), mode="bilinear", align_corners=False)
            total = large[0].softmax(0) if total is None else total + large[0].softmax(0)
    assert total is not None
    return total.argmax(0)


def evaluate_segmentation(
    encoder: LayeredEncoder, data: SegmentationData, config: SegmentationConfig, workspace: Workspace, *, head: str
) -> Result:
    """Train a head and measure it on the test images; the headline is mean IoU.

    Args:
        encoder: The model.
        data: Images with masks.
        config: Settings.
        workspace: Processes share batches and test images; the head's state is saved in `segmentation-<head>`.
        head: "linear": last block, one scale. "ms": last four blocks, larger scales, averaged over scales and mirror
            images.

    Raises:
        DataError: A file is missing or does not fit; names it.
        ConfigError: The model lacks a block.
    """
    ms = head == "ms"
    blocks = MS_BLOCKS if ms else 1
    if blocks > encoder.depth:
        raise ConfigError(f"The model has {encoder.depth} blocks, segmentation:ms reads {MS_BLOCKS}: use :linear.")
    scale = MS_SCALE if ms else 1.0
    short_side, window = config.short_side or round(scale * data.short_side), config.crop or round(scale * data.crop)
    stride = window // 2 if ms else window * 2 // 3
    viewing = Viewing(short_side, window, stride, config.ratios if ms else (1.0,), ms, config.test_batch)
    protocol: dict[str, Any] = {
        **to_dict(config),
        "head": head,
        "blocks": blocks,
        "short_side": short_side,
        "crop": window,
        "stride": stride,
        "train_ratios": (1.0, 3.0) if ms else (0.5, 2.0),
        "ratios": viewing.ratios,
        "flip_test": ms,
    }
    context = workspace.context
    network = linear_head(blocks * encoder.dim, data.classes, context).to(workspace.device)
    _train(encoder, network, data, config, workspace, protocol)
    confusion = Confusion(data.classes)
    for index in range(context.rank, len(data.test), context.world_size):
        photo, truth = data.test.read(index)
        confusion.add(segment(encoder, network, photo, blocks, viewing).cpu(), truth)
    confusion.counts = context.sum(confusion.counts.to(workspace.device)).cpu()
    notes = ["The last step's head, not the best on the test images; masks at their full size."]
    return Result(confusion.metrics(), "miou", protocol, data.facts(), notes)


def _train(
    encoder: LayeredEncoder,
    network: nn.Module,
    data: SegmentationData,
    config: SegmentationConfig,
    workspace: Workspace,
    protocol: dict[str, Any],
) -> None:
    context, device = workspace.context, workspace.device
    augmentation = SegmentationAugmentation(protocol["short_side"], protocol["train_ratios"], protocol["crop"])

    def factor(step: int) -> float:
        """Rises from a millionth, while falling linearly to 0 (official: warm-up times polynomial of power 1)."""
        return warmup(step, config.warmup_steps, 1e-6) * (1 - step / config.steps)

    def loss(batch: PairBatch, _: int) -> Tensor:
        truth = batch.targets.to(device)
        logits = pixel_logits(encoder, network, batch.images.to(device), protocol["blocks"])
        # The mean over the pixels of every process, so that any number of processes trains the same head.
        total = F.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="sum")
        counted = context.sum((truth != IGNORED).sum())
        return total * context.world_size / counted.clamp(min=1)

    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = Schedule(config.steps, config.batch_size, factor, save_every=config.save_every, workers=config.workers)
    key = {**protocol, "weights": encoder.fingerprint(), "images": data.facts().checksum}
    place = workspace.within(f"segmentation-{protocol['head']}", checksum([key])[:8])
    train_head(network, loss, ReadPairs(data.train, augmentation), optimizer, schedule, place, key)
