"""Neighbours: those of a full sort, whatever the tiles, the precision and how late the best ones come."""

import pytest
import torch
import torch.nn.functional as F

from dinov2_zoo.evaluation import neighbours
from dinov2_zoo.evaluation.neighbours import nearest


def draw(count, seed, dim=16):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tile", [64, 128, 100, 7, 5000])  # 64 and 128 are looked at in groups
@pytest.mark.parametrize("order", ["any", "best last"])
def test_neighbours_are_those_of_a_full_sort(monkeypatch, tile, order):
    monkeypatch.setattr(neighbours, "TILE", tile)
    bank, queries = draw(1000, 0), F.normalize(draw(30, 1), dim=1)
    if order == "best last":  # every tile beats all before it
        bank = bank[(F.normalize(bank, dim=1) @ queries[0]).argsort()]
    expected, places = (queries @ F.normalize(bank, dim=1).T).topk(20, dim=1)
    found, where = nearest(bank, queries, 20)
    assert torch.allclose(found, expected, atol=1e-6) and torch.equal(where, places)


def test_half_precision_and_own_numbers(monkeypatch):
    monkeypatch.setattr(neighbours, "TILE", 64)
    bank = draw(300, 0).half()
    cosine = F.normalize(bank.float(), dim=1) @ F.normalize(bank.float(), dim=1).T
    cosine.fill_diagonal_(-torch.inf)
    expected = cosine.topk(5, dim=1)
    parts = [nearest(bank, F.normalize(bank[i : i + 100].float(), dim=1), 5, first=i) for i in (0, 100, 200)]
    assert torch.allclose(torch.cat([values for values, _ in parts]), expected.values, atol=1e-6)
    assert torch.equal(torch.cat([where for _, where in parts]), expected.indices)


def test_a_small_bank_gives_all_it_has():
    values, where = nearest(draw(3, 0), F.normalize(draw(4, 1), dim=1), 10)
    assert values.shape == (4, 3) and sorted(where[0].tolist()) == [0, 1, 2]
