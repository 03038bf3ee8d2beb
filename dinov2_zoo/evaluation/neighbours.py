"""Exact nearest neighbours by cosine, over a bank of any size in bounded memory."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

TILE = 2048
"""Bank vectors compared at a time on a CPU: the products then stay in its caches, which halves their time."""
CUDA_TILE = 65_536
"""The same on a GPU."""

GROUP = 64
"""Neighbouring cosines whose maximum is looked at before they are."""


def nearest(
    bank: Float[Tensor, "n D"], queries: Float[Tensor, "m D"], k: int, *, first: int | None = None
) -> tuple[Float[Tensor, "m k"], Int64[Tensor, "m k"]]:
    """Cosine and position of the k nearest bank vectors of each query, highest first.

    Once k neighbours are known, only what beats the worst of them is looked at: in a large bank that is next to
    nothing, so that finding costs little beside the products. Memory: tile x m cosines, and m x k results.

    Args:
        bank: Of any length and precision; normalised here, a tile at a time.
        queries: Normalised, fp32.
        k: Neighbours; fewer where the bank has fewer.
        first: The queries are bank[first:first + m], and none is its own neighbour; None: they are not in the bank.
            May be negative, or beyond the bank, for the part of them that lies in it.
    """
    size, device = len(queries), queries.device
    best = queries.new_full((size, 0), -torch.inf)
    where = torch.empty(size, 0, dtype=torch.long, device=device)
    rows = torch.arange(size, device=device)
    pending: list[tuple[Tensor, Tensor, Tensor]] = []
    tile = CUDA_TILE if queries.is_cuda else TILE
    # One buffer for all tiles: asking the system for fresh memory each time takes a fifth of the product's time.
    buffer = queries.new_empty(size, min(tile, len(bank)))
    for start in range(0, len(bank), tile):
        vectors = bank[start : start + tile].float()
        vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_(min=1e-12)
        whole = len(vectors) == buffer.shape[1]
        cosine = torch.mm(queries, vectors.T, out=buffer) if whole else queries @ vectors.T
        if first is not None:
            column = first + rows - start
            inside = (column >= 0) & (column < cosine.shape[1])
            cosine[rows[inside], column[inside]] = -torch.inf
        if best.shape[1] < k or queries.is_cuda:
            values, places = cosine.topk(min(k, cosine.shape[1]), dim=1)
            best, where = _best(torch.cat([best, values], 1), torch.cat([where, places + start], 1), k)
            continue
        row, value, place = _above(cosine, best[:, -1:])
        pending.append((row, value, place + start))
        if sum(len(row) for row, _, _ in pending) > size * k // 2:
            best, where = _merge(best, where, pending, k)
            pending = []
    return _merge(best, where, pending, k) if pending else (best, where)


def _above(cosine: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, value and column of what lies above a threshold [m, 1]; groups are judged by their maximum first."""
    if cosine.shape[1] % GROUP:
        row, place = (cosine > least).nonzero(as_tuple=True)
        return row, cosine[row, place], place
    groups = cosine.unflatten(1, (-1, GROUP))
    row, group = (groups.amax(2) > least).nonzero(as_tuple=True)
    found = groups[row, group]
    hit, inside = (found > least[row]).nonzero(as_tuple=True)
    return row[hit], found[hit, inside], group[hit] * GROUP + inside


def _best(values: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, order = values.topk(min(k, values.shape[1]), dim=1)
    return values, places.gather(1, order)


def _merge(best: Tensor, where: Tensor, pending: list[tuple[Tensor, Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Lay the candidates of each query side by side, and keep the best of them and of what is known."""
    row, value, place = (torch.cat(parts) for parts in zip(*pending, strict=True))
    order = row.argsort(stable=True)
    row, value, place = row[order], value[order], place[order]
    count = row.bincount(minlength=len(best))
    slot = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    values = best.new_full((len(best), int(count.max())), -torch.inf)
    places = torch.zeros_like(values, dtype=torch.long)
    values[row, slot], places[row, slot] = value, place
    return _best(torch.cat([best, values], 1), torch.cat([where, places], 1), k)
