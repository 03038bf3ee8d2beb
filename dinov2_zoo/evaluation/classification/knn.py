"""k-nearest-neighbour classification on frozen features, by DINOv2's protocol (official `eval/knn.py`)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.config.classification import KnnConfig
from dinov2_zoo.data.augment import generator
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.classification.labelled import LabelledData, skipped_notes
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.feature_store import Kind, Stored, stored_features
from dinov2_zoo.evaluation.neighbours import nearest
from dinov2_zoo.evaluation.record import Result
from dinov2_zoo.evaluation.workspace import Workspace
from dinov2_zoo.training.distributed import DistributedContext, SingleProcess

CHUNK = 4096
"""Queries compared at a time; bounds memory, changes nothing else."""
PAPERS_K = 20
"""Neighbours of the paper's tables."""


@dataclass(frozen=True)
class Examples:
    """Features and what they are of."""

    features: Float[Tensor, "n D"]
    labels: Int64[Tensor, " n"]
    """Classes 0, 1, ..."""


def knn_accuracy(
    train_features: Float[Tensor, "n D"],
    train_labels: Int64[Tensor, " n"],
    test_features: Float[Tensor, "m D"],
    test_labels: Int64[Tensor, " m"],
    *,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    chunk: int = CHUNK,
) -> dict[int, float]:
    """Share of test images whose class the weighted vote of their k nearest training images finds.

    Features are L2-normalised; neighbours are those of highest cosine; a neighbour's vote weighs exp(cosine /
    temperature), as a softmax over the largest k's neighbours, then cut to each k. Equal votes go to the lower class.

    Args:
        train_features: The bank.
        train_labels: Classes 0, 1, ... of the bank.
        test_features: Queries, on the bank's device, where all is computed.
        test_labels: Their classes.
        k: Numbers of neighbours; one above the bank's size is lowered to it, with a warning.
        temperature: Of the vote (official: 0.07).
        chunk: Queries at a time; bounds memory, changes nothing else.

    Returns:
        {k actually used: accuracy in 0..1}.

    Raises:
        DataError: Labels do not fit the features, a set is empty, or a test class has no training image.
    """
    _check(train_features, train_labels, "training")
    _check(test_features, test_labels, "test")
    lacking = sorted(set(test_labels.tolist()) - set(train_labels.tolist()))
    if lacking:
        raise DataError(f"Classes {lacking[:10]} have test images but no training image: add some, or leave them out.")
    bank, queries = Examples(train_features, train_labels), Examples(test_features, test_labels)
    return _accuracy(bank, queries, k, temperature, chunk)


def knn_leave_one_out(
    features: Float[Tensor, "n D"],
    labels: Int64[Tensor, " n"],
    *,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    chunk: int = CHUNK,
) -> dict[int, float]:
    """`knn_accuracy` of one labelled set against itself, where no image is its own neighbour.

    For sets without a split. A class of one image can never be found and counts as wrong.

    Raises:
        DataError: Labels do not fit the features, or fewer than 2 images.
    """
    _check(features, labels, "labelled")
    if len(features) < 2:
        raise DataError("Leaving one out needs at least 2 labelled images: give more.")
    return _accuracy(Examples(features, labels), None, k, temperature, chunk)


@torch.inference_mode()
def _accuracy(
    bank: Examples,
    queries: Examples | None,
    k: Sequence[int],
    temperature: float,
    chunk: int,
    context: DistributedContext | None = None,
) -> dict[int, float]:
    """See `knn_accuracy`; without queries the bank asks itself.

    With several processes each searches its part of the bank, a stretch of it.
    """
    context = context or SingleProcess()
    own, asking = queries is None, queries or bank
    ks = _usable(k, len(bank.features) - own)
    device = bank.features.device
    labels, truth = bank.labels.to(device), asking.labels.to(device)
    classes = int(labels.max()) + 1
    part = -(-len(labels) // context.world_size)
    offset = context.rank * part
    mine, labels = bank.features[offset : offset + part], labels[offset : offset + part]
    right = dict.fromkeys(ks, 0)
    for start in range(0, len(truth), chunk):
        asked = F.normalize(asking.features[start : start + chunk].float(), dim=1)
        cosine, where = nearest(mine, asked, ks[-1], first=start - offset if own else None)
        cosine, found = _merge(cosine, labels[where], ks[-1], context)
        weights = (cosine / temperature).softmax(1)
        for count in ks:
            votes = torch.zeros(len(asked), classes, device=device)
            votes.scatter_add_(1, found[:, :count], weights[:, :count])
            right[count] += int((votes.argmax(1) == truth[start : start + chunk]).sum())
    return {count: right[count] / len(truth) for count in ks}


def _merge(cosine: Tensor, labels: Tensor, k: int, context: DistributedContext) -> tuple[Tensor, Tensor]:
    """The k nearest of all processes' nearest: the same as of the whole bank."""
    if context.world_size == 1:
        return cosine, labels
    parts = context.gather((cosine.cpu(), labels.cpu()))
    best, order = torch.cat([part[0] for part in parts], 1).topk(k, dim=1)
    return best.to(cosine.device), torch.cat([part[1] for part in parts], 1).gather(1, order).to(cosine.device)


def _usable(k: Sequence[int], largest: int) -> list[int]:
    """Each k at most the number of possible neighbours, ascending, once."""
    if not k or min(k) < 1:
        raise DataError(f"k-NN needs numbers of neighbours of at least 1, not {tuple(k)}: try k=(10, 20).")
    if max(k) > largest:
        lowered = [count for count in k if count > largest]
        warnings.warn(f"k = {lowered} lowered to {largest}: there are no more neighbours.", stacklevel=4)
    return sorted({min(count, largest) for count in k})


def _check(features: Tensor, labels: Tensor, what: str) -> None:
    if len(features) == 0:
        raise DataError(f"There are no {what} images for k-NN: check the labelled source.")
    if labels.shape != features.shape[:1]:
        raise DataError(f"{len(labels)} labels do not fit {len(features)} {what} features: give one class per image.")
    if int(labels.min()) < 0:
        raise DataError(f"Negative class among the {what} labels: number classes from 0.")


def evaluate_knn(encoder: LayeredEncoder, data: LabelledData, config: KnnConfig, workspace: Workspace) -> Result:
    """k-NN on stored class tokens, all k at once, and few-shot tries if asked for.

    The headline is k = 20, the paper's choice, or the nearest k measured.

    Args:
        encoder: The model.
        data: The bank, and queries; without test images one is left out of the bank.
        config: Settings.
        workspace: Processes share extraction and the bank.
    """
    sets = [
        stored_features(
            encoder, part, Kind(config.size), workspace, batch_size=config.batch_size, workers=config.workers
        )
        for part in (data.train, data.test)
        if part is not None
    ]
    bank, queries = sets[0], None if data.test is None else sets[1]
    found = _measure(bank, queries, config, workspace.context)
    headline = min(found, key=lambda count: abs(count - PAPERS_K))
    metrics = {"top1": found[headline], "best": max(found.values())}
    metrics |= {f"k{count}": value for count, value in found.items()}
    for shots in config.shots:
        best: list[float] = []
        for attempt in range(config.tries):
            chosen = _few(bank, shots, attempt)
            rest = _rows(bank, ~chosen) if queries is None else queries
            best.append(max(_measure(_rows(bank, chosen), rest, config, workspace.context).values()))
        accuracies = torch.tensor(best)
        metrics |= {f"shots{shots}": accuracies.mean().item(), f"shots{shots}_std": accuracies.std(correction=0).item()}
    notes = [f"top1 is k = {headline}; the official code reports the best k."]
    if queries is None:
        notes.append("No test images were named: every image was measured against all others.")
    if config.shots:
        notes.append("Of each few-shot try the best k counts, as in the official code.")
    protocol = {
        "k": headline,
        "split": data.split,
        "temperature": config.temperature,
        "size": config.size,
        "tries": config.tries,
    }
    notes += skipped_notes(*(part.skipped for part in sets))
    return Result(metrics, "top1", protocol, data.facts(), notes)


def _measure(bank: Stored, queries: Stored | None, config: KnnConfig, context: DistributedContext) -> dict[int, float]:
    # Not more neighbours than there are: the sets of a demo and few-shot tries are small.
    largest = len(bank.features) - (queries is None)
    ks = sorted({min(count, largest) for count in config.k})
    asking = None if queries is None else _examples(queries, context)
    return _accuracy(_examples(bank, context), asking, ks, config.temperature, CHUNK, context)


def _examples(stored: Stored, context: DistributedContext) -> Examples:
    assert stored.labels is not None
    return Examples(stored.features.to(context.device), stored.labels)


def _few(bank: Stored, shots: int, attempt: int) -> Tensor:
    """True for some images of each class; a class with fewer gives all."""
    assert bank.labels is not None
    order = torch.randperm(len(bank.labels), generator=generator("shots", shots, attempt))
    chosen = torch.zeros(len(order), dtype=torch.bool)
    for label in bank.labels.unique():
        chosen[order[bank.labels[order] == label][:shots]] = True
    return chosen


def _rows(stored: Stored, chosen: Tensor) -> Stored:
    assert stored.labels is not None
    return Stored(stored.features[chosen], stored.labels[chosen], stored.indices[chosen], stored.skipped)
