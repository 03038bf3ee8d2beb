"""Image retrieval on frozen features: mean average precision, by the revisited Oxford and Paris protocol."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinov2_zoo.config import to_dict
from dinov2_zoo.config.retrieval import RetrievalConfig
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.feature_store import Box, Kind, kind_features, stored_features
from dinov2_zoo.evaluation.record import Result
from dinov2_zoo.evaluation.retrieval.readers import RetrievalSet, Truth
from dinov2_zoo.evaluation.workspace import Workspace

PRECISION_AT = (1, 5, 10)


def average_precision(positives: Sequence[int], junk: Sequence[int] = ()) -> float:
    """Area under precision over recall, by trapezoids (Philbin 2007, revisited 2018).

    Args:
        positives: Ranks of the right images, from 0.
        junk: Ranks of images that are neither right nor wrong: they are taken out of the ranking.

    Returns:
        0..1. The trapezoid averages the precision before and after each right image, so it differs a little from
        scikit-learn's step function, and from torchmetrics'.
    """
    if not positives:
        raise ValueError("there are no positives: leave the query out")
    total = 0.0
    for found, rank in enumerate(_without(positives, junk)):
        before = 1.0 if rank == 0 else found / rank
        after = (found + 1) / (rank + 1)
        total += (before + after) / 2 / len(positives)
    return total


def _without(positives: Sequence[int], junk: Sequence[int]) -> list[int]:
    """Ranks of the right images, ascending, once junk has been taken out."""
    return [rank - sum(other < rank for other in junk) for rank in sorted(positives)]


def retrieval_metrics(
    queries: Float[Tensor, "q D"], gallery: Float[Tensor, "n D"], truths: Sequence[Truth], *, chunk: int = 256
) -> dict[str, float]:
    """Rank the gallery for each query, and judge the rankings.

    Args:
        queries: L2-normalised.
        gallery: L2-normalised.
        truths: What is right for each query.
        chunk: Queries at a time; bounds memory, changes nothing else.

    Returns:
        map, and mp@1, mp@5, mp@10: share of right images among the first so many. A query without a right image is left
        out; `queries` is the number of the others.
    """
    precisions: list[float] = []
    first: dict[int, list[float]] = {count: [] for count in PRECISION_AT}
    for start in range(0, len(queries), chunk):
        cosine = queries[start : start + chunk] @ gallery.T
        order = torch.argsort(cosine, dim=1, descending=True, stable=True).cpu()
        ranks = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
        for row, truth in zip(ranks, truths[start : start + chunk], strict=True):
            if not truth.right:
                continue
            right, junk = row[list(truth.right)].tolist(), row[list(truth.junk)].tolist()
            precisions.append(average_precision(right, junk))
            places = _without(right, junk)
            for count, found in first.items():
                # With fewer right images than places, the last right image's place bounds the count (revisited).
                found.append(sum(place < count for place in places) / min(count, max(places) + 1))
    if not precisions:
        raise DataError("No query has a right image in the gallery: check the data set.")
    mean = {f"mp@{count}": sum(found) / len(found) for count, found in first.items()}
    return {"map": sum(precisions) / len(precisions), **mean, "queries": float(len(precisions))}


def retrieval_features(
    encoder: LayeredEncoder,
    source: Source,
    config: RetrievalConfig,
    workspace: Workspace,
    *,
    boxes: Mapping[int, Box] | None = None,
) -> Float[Tensor, "n D"]:
    """Normalised class tokens of all images, in the source's order, on every process.

    Args:
        encoder: The model.
        source: Images.
        config: Size, scales.
        workspace: Processes share the images, and features are stored; with boxes neither, for these are few.
        boxes: Left, top, right, bottom in pixels, by image: only that part is seen.

    Raises:
        DataError: An image cannot be decoded; names it. The protocol has no rule for missing images.
    """
    kind = Kind(config.size, scales=config.scales if config.resize == "long_side" else ())
    options = {"batch_size": config.batch_size, "workers": config.workers}
    if boxes:
        (found,) = kind_features(encoder, source, kind, [range(len(source))], boxes=boxes, **options)
        features, skipped = found.features, {skip.name: skip.reason for skip in found.skipped}
    else:
        stored = stored_features(encoder, source, kind, workspace, **options)
        features, skipped = stored.features, stored.skipped
    if skipped:
        name, reason = next(iter(skipped.items()))
        raise DataError(f"{name}: {reason}")
    return F.normalize(features.float(), dim=1)


def evaluate_retrieval(
    encoder: LayeredEncoder, data: RetrievalSet, config: RetrievalConfig, workspace: Workspace
) -> Result:
    """Rank the gallery for every query by cosine.

    The headline is mAP, on revisited sets that of the medium task.

    Args:
        encoder: The model.
        data: Queries, gallery, what is right.
        config: Settings.
        workspace: Processes share the images.

    Raises:
        DataError: An image cannot be decoded, or no query has a right image.
    """
    workspace.say(f"{len(data.gallery)} images, {len(data.queries)} queries")
    gallery = retrieval_features(encoder, data.gallery, config, workspace)
    boxes = data.boxes if config.crop_queries else None
    if data.queries is data.gallery:
        queries = gallery
    else:
        queries = retrieval_features(encoder, data.queries, config, workspace, boxes=boxes)
    metrics: dict[str, float] = {}
    for task, truths in data.tasks.items():
        suffix = f"_{task}" if task else ""
        for name, value in retrieval_metrics(queries, gallery, truths).items():
            metrics[f"{name}{suffix}"] = value
    headline = "map_medium" if "map_medium" in metrics else "map"
    assert math.isfinite(metrics[headline])
    notes = ["Class token, L2-normalised; the paper states neither feature nor size."]
    if boxes:
        notes.append("Queries are cut to their annotated boxes.")
    return Result(metrics, headline, to_dict(config), data.facts(), notes)
