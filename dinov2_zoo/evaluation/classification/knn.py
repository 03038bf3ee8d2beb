"""k-nearest-neighbour classification on frozen features, by DINOv2's protocol (official `eval/knn.py`)."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.config.classification import KnnConfig
from dinov2_zoo.data.augment import generator
from dinov2_zoo.data.sources import Source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.classification.labelled import check_classes, facts, skipped_notes
from dinov2_zoo.evaluation.classification.neighbours import nearest
from dinov2_zoo.evaluation.encoders.encoder import LayeredEncoder
from dinov2_zoo.evaluation.encoders.feature_store import Kind, Stored, stored_features
from dinov2_zoo.evaluation.record import Result
from dinov2_zoo.training.distributed import DistributedContext, SingleProcess

CHUNK = 4096
"""Queries compared at a time; bounds memory, changes nothing else."""


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
    return _accuracy(train_features, train_labels, test_features, test_labels, k, temperature, chunk, own=False)


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
    return _accuracy(features, labels, features, labels, k, temperature, chunk, own=True)


@torch.inference_mode()
def _accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    k: Sequence[int],
    temperature: float,
    chunk: int,
    *,
    own: bool,
    processes: DistributedContext | None = None,
) -> dict[int, float]:
    """`own`: the queries are the bank. With several processes each searches its part of the bank, a stretch of it."""
    processes = processes or SingleProcess()
    ks = _usable(k, len(bank) - own)
    bank_labels, query_labels = bank_labels.to(bank.device), query_labels.to(bank.device)
    classes = int(bank_labels.max()) + 1
    part = -(-len(bank) // processes.world_size)
    offset = processes.rank * part
    bank, bank_labels = bank[offset : offset + part], bank_labels[offset : offset + part]
    right = dict.fromkeys(ks, 0)
    for start in range(0, len(queries), chunk):
        asked = F.normalize(queries[start : start + chunk].float(), dim=1)
        cosine, where = nearest(bank, asked, ks[-1], first=start - offset if own else None)
        cosine, labels = _merge(cosine, bank_labels[where], ks[-1], processes)
        weights = (cosine / temperature).softmax(1)
        truth = query_labels[start : start + chunk]
        for count in ks:
            votes = torch.zeros(len(asked), classes, device=bank.device)
            votes.scatter_add_(1, labels[:, :count], weights[:, :count])
            right[count] += int((votes.argmax(1) == truth).sum())
    return {count: right[count] / len(queries) for count in ks}


def _merge(cosine: Tensor, labels: Tensor, k: int, processes: DistributedContext) -> tuple[Tensor, Tensor]:
    """The k nearest of all processes' nearest: the same as of the whole bank."""
    if processes.world_size == 1:
        return cosine, labels
    parts = processes.gather((cosine.cpu(), labels.cpu()))
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


def evaluate_knn(
    encoder: LayeredEncoder,
    train: Source,
    test: Source | None,
    source: str,
    config: KnnConfig,
    *,
    processes: DistributedContext,
    folder: Path,
    say: Callable[[str], object] = lambda _: None,
) -> Result:
    """k-NN on stored class tokens, all k at once, and few-shot tries if asked for.

    The headline is k = 20, the paper's choice, or the nearest k measured.

    Args:
        encoder: The model.
        train: The bank.
        test: Queries; None leaves one out of the bank.
        source: How the bank was named.
        config: Settings.
        processes: Share extraction and the bank.
        folder: Features are stored in `features` below it.
        say: Takes a line of progress now and then.

    Raises:
        DataError: The classes do not fit; see `labelled.check_classes`.
    """
    check_classes(train, test)
    sets = [
        stored_features(
            encoder,
            part,
            folder / "features",
            Kind(config.size),
            processes=processes,
            batch_size=config.batch_size,
            workers=config.workers,
            say=say,
        )
        for part in (train, test)
        if part is not None
    ]
    bank, queries = sets[0], sets[-1]
    found = _measure(bank, queries, config, own=test is None, processes=processes)
    figures = {f"k{count}": value for count, value in found.items()}
    headline = min(found, key=lambda count: abs(count - 20))
    figures = {"top1": found[headline], "best": max(found.values()), **figures}
    for shots in config.shots:
        tries: list[dict[int, float]] = []
        for attempt in range(config.tries):
            chosen = _few(bank, shots, attempt)
            rest = _rows(bank, ~chosen) if test is None else queries
            tries.append(_measure(_rows(bank, chosen), rest, config, own=False, processes=processes))
        accuracies = torch.tensor([max(result.values()) for result in tries])
        figures |= {f"shots{shots}": accuracies.mean().item(), f"shots{shots}_std": accuracies.std(correction=0).item()}
    notes = [f"top1 is k = {headline}; the official code reports the best k."]
    if test is None:
        notes.append("No test images were named: every image was measured against all others.")
    if config.shots:
        notes.append("Of each few-shot try the best k counts, as in the official code.")
    protocol = {"temperature": config.temperature, "size": config.size, "tries": config.tries}
    notes += skipped_notes(*(part.skipped for part in sets))
    return Result(figures, "top1", protocol, facts(source, train, test), notes)


def _measure(
    bank: Stored, queries: Stored, config: KnnConfig, *, own: bool, processes: DistributedContext
) -> dict[int, float]:
    assert bank.labels is not None and queries.labels is not None
    device = processes.device
    # Not more neighbours than there are: the sets of a demo and few-shot tries are small.
    ks = sorted({min(count, len(bank.features) - own) for count in config.k})
    return _accuracy(
        bank.features.to(device),
        bank.labels,
        queries.features.to(device),
        queries.labels,
        ks,
        config.temperature,
        CHUNK,
        own=own,
        processes=processes,
    )


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
