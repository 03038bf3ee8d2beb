"""Depth on frozen features, from training a head to the table's metric (paper 7.4, released configs)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.depth import DepthConfig
from dinov2_zoo.data.augment import seeded
from dinov2_zoo.data.preprocess import normalise, to_uint8
from dinov2_zoo.errors import ConfigError
from dinov2_zoo.evaluation.dense.padding import pad, unpad
from dinov2_zoo.evaluation.dense.pairs import PairBatch, ReadPairs
from dinov2_zoo.evaluation.dense.training import Schedule, train_head, warmup
from dinov2_zoo.evaluation.depth.augment import DepthAugmentation
from dinov2_zoo.evaluation.depth.bins_head import BinsHead
from dinov2_zoo.evaluation.depth.dpt import DptHead
from dinov2_zoo.evaluation.depth.losses import gradient_loss, sig_loss
from dinov2_zoo.evaluation.depth.metrics import depth_metrics, mean_over_images
from dinov2_zoo.evaluation.depth.official import load_official
from dinov2_zoo.evaluation.depth.readers import DepthData
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.record import Result, checksum
from dinov2_zoo.evaluation.workspace import Workspace

# Blocks read by lin.4 and DPT, from 0, by depth of the model (official configs; g's paper text agrees).
TAPS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}


def taps(depth: int, head: str) -> list[int]:
    """Which blocks a head reads, of a model with so many.

    Raises:
        ConfigError: The model has too few.
    """
    if head == "lin1":
        return [depth - 1]
    if depth in TAPS:
        return list(TAPS[depth])
    if depth < 4:
        raise ConfigError(f"The model has {depth} blocks, and depth:{head} reads four: use depth:lin1.")
    return [depth * (part + 1) // 4 - 1 for part in range(4)]


def depth_head(head: str, dim: int, min_depth: float, max_depth: float) -> nn.Module:
    """An untrained head: "lin1", "lin4" or "dpt"; the same weights each time.

    Raises:
        ConfigError: The width does not suit DPT.
    """
    if head == "dpt" and dim % 8:
        raise ConfigError(f"depth:dpt needs a model whose width is a multiple of 8, not {dim}: use depth:lin4.")
    with seeded(0):
        if head == "dpt":
            return DptHead(dim, min_depth)
        return BinsHead(dim, 1 if head == "lin1" else 4, min_depth, max_depth)


def predict_depth(
    encoder: LayeredEncoder,
    head: nn.Module,
    blocks: Sequence[int],
    images: Float[Tensor, "B 3 H W"],
    *,
    reference: bool = False,
    flip: bool = False,
) -> Float[Tensor, "B H W"]:
    """Depth of every pixel, metres.

    Args:
        encoder: The model; its blocks are read without the final norm (official).
        head: Trained for it.
        blocks: That the head reads.
        images: Normalised, of any size: padded with zeros to multiples of the patch.
        reference: Stretch the result over the image as released code does; otherwise what lies in the padding is cut.
        flip: Average with the mirror image.
    """
    height, width = images.shape[2:]
    whole = pad(images, encoder.patch_size)
    found = head(encoder.layers(whole, blocks, norm=False))
    if reference:
        depth = _resized(found, height, width)[:, 0]
    else:
        depth = unpad(_resized(found, whole.shape[2], whole.shape[3]), height, width)[:, 0]
    if flip:
        mirrored = predict_depth(encoder, head, blocks, images.flip(3), reference=reference)
        depth = (depth + mirrored.flip(2)) / 2
    return depth


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)


def evaluate_depth(
    encoder: LayeredEncoder, data: DepthData, config: DepthConfig, workspace: Workspace, *, head: str
) -> Result:
    """Train a head, or load an official one, and measure it on the test images; the headline is RMSE in metres.

    AdamW's first beta stays at 0.9: the official 0.85 to 0.95 cycle comes from its framework's scheduler and is left
    out. The last step's head is measured; the official one is the best of many on the test images.

    Args:
        encoder: The model.
        data: Images with depth.
        config: Settings.
        workspace: Processes share batches and test images; the head's state is saved in `depth-<head>`.
        head: "lin1", "lin4" or "dpt".

    Raises:
        DataError: The data lack a part that is needed, or a file is damaged; names it.
        ConfigError: The model lacks a block.
    """
    context = workspace.context
    blocks = taps(encoder.depth, head)
    network = depth_head(head, encoder.dim, data.min_depth, data.max_depth).to(workspace.device)
    protocol: dict[str, Any] = {
        **to_dict(config),
        "head": head,
        "blocks": blocks,
        "min_depth": data.min_depth,
        "max_depth": data.max_depth,
        "mask": data.mask,
        "crop": config.crop or data.crop,
    }
    if config.weights:
        load_official(network, Path(config.weights).expanduser())
        network.eval()
    else:
        _train(encoder, network, data, config, workspace, protocol)
        # The loss takes its variance over each process's images: two records are of one protocol if these are as many.
        protocol["images_per_process"] = config.batch_size // context.world_size
    test = data.test_images()
    images: list[tuple[int, dict[str, float]]] = []
    for index in range(context.rank, len(test), context.world_size):
        photo, truth = test.read(index)
        pixels = normalise(to_uint8(photo))[None].to(workspace.device)
        with torch.no_grad():
            (found,) = predict_depth(
                encoder, network, blocks, pixels, reference=config.reference, flip=config.flip_test
            )
        images.append((index, depth_metrics(found.cpu(), truth, data.min_depth, data.max_depth, data.mask)))
    in_order = [image for _, image in sorted((pair for part in context.gather(images) for pair in part), key=_index)]
    notes = ["Metrics are means over images; the last step's head, not the best on the test images."]
    if config.weights:
        notes = ["Metrics are means over images; an official head, not trained here."]
    return Result(mean_over_images(in_order), "rmse", protocol, data.facts(), notes)


def _index(pair: tuple[int, object]) -> int:
    return pair[0]


def _train(
    encoder: LayeredEncoder,
    network: nn.Module,
    data: DepthData,
    config: DepthConfig,
    workspace: Workspace,
    protocol: dict[str, Any],
) -> None:
    blocks, device, rising = protocol["blocks"], workspace.device, round(config.warmup * config.steps)

    def factor(step: int) -> float:
        """Linear rise, then cosine to 1e-8 (official)."""
        done = (step - rising) / max(1, config.steps - rising)
        return warmup(step, rising, 1e-3) if step < rising else 1e-8 + (1 - 1e-8) * (1 + math.cos(math.pi * done)) / 2

    def loss(batch: PairBatch, step: int) -> Tensor:
        truth = batch.targets.to(device)
        found = predict_depth(encoder, network, blocks, batch.images.to(device), reference=config.reference)
        value = sig_loss(found, truth, data.max_depth, mean_only=step < config.mean_only_steps)
        if config.gradient_weight:
            value = value + config.gradient_weight * gradient_loss(found, truth, data.max_depth)
        return value

    pairs = ReadPairs(data.train_images(), DepthAugmentation(protocol["crop"], data.brightness))
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = Schedule(config.steps, config.batch_size, factor, config.clip_norm, config.save_every, config.workers)
    key = {**protocol, "weights": encoder.fingerprint(), "images": data.facts().checksum}
    place = workspace.within(f"depth-{protocol['head']}", checksum([key])[:8])
    train_head(network, loss, pairs, optimizer, schedule, place, key)
