"""Video object segmentation: masks of the first frame follow the similarity of frozen tokens (DINO v1, on DAVIS)."""

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.video import VideoConfig
from dinov2_zoo.data.preprocess import normalise, to_uint8
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.record import Result
from dinov2_zoo.evaluation.video.metrics import j_and_f
from dinov2_zoo.evaluation.video.readers import VideoSet
from dinov2_zoo.evaluation.workspace import Workspace

ROWS = 8
"""Rows of tokens compared at a time: bounds memory, changes nothing else."""


def propagate(
    context: list[tuple[Float[Tensor, "D h w"], Float[Tensor, "K h w"]]],
    target: Float[Tensor, "D h w"],
    *,
    radius: int,
    neighbours: int,
    temperature: float,
) -> Float[Tensor, "K h w"]:
    """Soft masks of a frame from those of earlier ones.

    Each token takes the mean of the masks at the most similar tokens of all earlier frames together, weighted by
    exp(cosine / temperature), among those at most `radius` tokens away along each axis. Rows are compared in strips
    with the strips that they can see, so nothing of size (h w)^2 is ever made.

    Args:
        context: L2-normalised features and soft masks of earlier frames.
        target: L2-normalised features.
        radius: Tokens.
        neighbours: Votes for each token.
        temperature: Of the vote.
    """
    dim, height, width = target.shape
    column = torch.arange(width, device=target.device)
    near = (column[:, None] - column[None]).abs() <= radius
    strips: list[Tensor] = []
    for top in range(0, height, ROWS):
        bottom = min(top + ROWS, height)
        asked = target[:, top:bottom].reshape(dim, -1)
        low, high = max(0, top - radius), min(height, bottom + radius)
        row = torch.arange(low, high, device=target.device)
        here = torch.arange(top, bottom, device=target.device)
        rows_near = (here[:, None] - row[None]).abs() <= radius
        seen = (rows_near[:, None, :, None] & near[None, :, None]).flatten(2).flatten(0, 1)
        scores, labels = [], []
        for features, masks in context:
            cosine = asked.T @ features[:, low:high].reshape(dim, -1)
            scores.append(cosine.masked_fill(~seen, -torch.inf))
            labels.append(masks[:, low:high].reshape(len(masks), -1))
        values, where = torch.cat(scores, 1).topk(min(neighbours, sum(s.shape[1] for s in scores)), dim=1)
        weights = (values / temperature).softmax(1)
        votes = (torch.cat(labels, 1)[:, where] * weights).sum(2)
        strips.append(votes.unflatten(1, (bottom - top, width)))
    return torch.cat(strips, 1)


def follow(
    encoder: LayeredEncoder, frames: list[Image.Image], first: Int64[Tensor, "H W"], config: VideoConfig
) -> Int64[Tensor, "T H W"]:
    """Object numbers in every frame of a clip, from those in the first.

    Args:
        encoder: The model; last block's patch tokens with the final norm.
        frames: RGB, of one size.
        first: Object numbers 0, 1, ... in the first frame.
        config: Settings.
    """
    height, width = first.shape
    factor = config.short_side / min(height, width)
    patch = encoder.patch_size
    sides = [max(1, int(side * factor + 1e-6) // patch) * patch for side in (height, width)]
    grid = [side // patch for side in sides]
    count = int(first.max()) + 1
    onehot = F.one_hot(first, count).permute(2, 0, 1).float().to(encoder.device)
    masks = F.interpolate(onehot[None], grid, mode="nearest")[0]
    context: list[tuple[Tensor, Tensor]] = []
    found = [first]
    for number, frame in enumerate(frames):
        pixels = tv.resize(to_uint8(frame), sides, interpolation=InterpolationMode.BICUBIC, antialias=True)
        tokens = F.normalize(encoder(normalise(pixels)[None]).patches[0], dim=1).T.unflatten(1, grid)
        if number:
            masks = propagate(
                context,
                tokens,
                radius=config.radius,
                neighbours=config.neighbours,
                temperature=config.temperature,
            )
            found.append(_numbers(masks, (height, width)).cpu())
        # The first frame stays, the others move on.
        context.append((tokens, masks))
        if len(context) > 1 + config.frames:
            del context[1]
    return torch.stack(found)


def _numbers(masks: Float[Tensor, "K h w"], size: tuple[int, int]) -> Int64[Tensor, "H W"]:
    """Object of each pixel: soft masks enlarged, each stretched to 0..1, the largest wins (DINO v1)."""
    large = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    stretched = torch.where(high > 0, (large - low) / (high - low).clamp(min=1e-12), large)
    return stretched.argmax(0)


def evaluate_video(encoder: LayeredEncoder, data: VideoSet, config: VideoConfig, workspace: Workspace) -> Result:
    """J, F and their mean over all objects of all clips.

    Args:
        encoder: The model.
        data: Clips with masks.
        config: Settings.
        workspace: Processes share the clips; nothing is kept.

    Raises:
        DataError: A frame or a mask cannot be read; names it.
    """
    context = workspace.context
    mine: list[tuple[int, list[tuple[float, float]]]] = []
    for number in range(context.rank, len(data), context.world_size):
        frames, truth = data.read(number)
        mine.append((number, j_and_f(follow(encoder, frames, truth[0], config), truth)))
        workspace.say(f"clip {number + 1} of {len(data)}, {len(frames)} frames")
    found = dict(pair for part in context.gather(mine) for pair in part)
    scores = [score for number in sorted(found) for score in found[number]]
    j, f = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    metrics = {"j_and_f": (j + f) / 2, "j": j, "f": f, "objects": float(len(scores))}
    notes = ["Last block, final norm, patch tokens; first and last frame do not count."]
    return Result(metrics, "j_and_f", to_dict(config), data.facts(), notes)
