"""k-nearest-neighbour classification on frozen features, by DINOv2's protocol (official `eval/knn.py`)."""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2_zoo.errors import DataError

# Bank vectors compared at a time. With `chunk` queries this bounds memory: 65,536 x 1,024 similarities are 256 MiB.
BANK_CHUNK = 65_536


def knn_accuracy(
    train_features: Float[Tensor, "n D"],
    train_labels: Int64[Tensor, " n"],
    test_features: Float[Tensor, "m D"],
    test_labels: Int64[Tensor, " m"],
    *,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    chunk: int = 1024,
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
    chunk: int = 1024,
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
) -> dict[int, float]:
    ks = _usable(k, len(bank) - own)
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    bank_labels, query_labels = bank_labels.to(bank.device), query_labels.to(bank.device)
    classes = int(bank_labels.max()) + 1
    right = dict.fromkeys(ks, 0)
    for start in range(0, len(queries), chunk):
        part = queries[start : start + chunk]
        cosine, neighbours = _nearest(bank, part, ks[-1], first=start if own else None)
        weights = (cosine / temperature).softmax(1)
        labels = bank_labels[neighbours]
        truth = query_labels[start : start + chunk]
        for count in ks:
            votes = torch.zeros(len(part), classes, device=bank.device)
            votes.scatter_add_(1, labels[:, :count], weights[:, :count])
            right[count] += int((votes.argmax(1) == truth).sum())
    return {count: right[count] / len(queries) for count in ks}


def _nearest(bank: Tensor, queries: Tensor, k: int, *, first: int | None) -> tuple[Tensor, Tensor]:
    """Cosine and position [m, k] of the k nearest bank vectors, highest first, over the bank piece by piece.

    `first`: the queries are bank[first:first + m], and none is its own neighbour; None: they are not in the bank.
    """
    best = queries.new_full((len(queries), 0), -torch.inf)
    where = torch.empty(len(queries), 0, dtype=torch.long, device=bank.device)
    rows = torch.arange(len(queries), device=bank.device)
    for start in range(0, len(bank), BANK_CHUNK):
        cosine = queries @ bank[start : start + BANK_CHUNK].T
        if first is not None:
            column = first + rows - start
            inside = (column >= 0) & (column < cosine.shape[1])
            cosine[rows[inside], column[inside]] = -torch.inf
        values, positions = cosine.topk(min(k, cosine.shape[1]), dim=1)
        best, where = torch.cat([best, values], 1), torch.cat([where, positions + start], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        where = where.gather(1, order)
    return best, where


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
