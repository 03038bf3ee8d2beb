"""Ridge regression of tokens against scikit-learn's, however the pairs arrive; known maps are found again."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dinov2_zoo.data.batch import Batch
from dinov2_zoo.initialisation import ridge as regression
from dinov2_zoo.initialisation.ridge import LinearMap, Moments, fit_maps
from dinov2_zoo.models.tokens import BranchOutput, Tokens

CPU = torch.device("cpu")
N, DS, DT = 120, 6, 4


def pairs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(N, DS, generator=generator, dtype=torch.float64) @ torch.diag(torch.arange(1.0, DS + 1).double())
        + 2
    )
    y = x @ torch.randn(DS, DT, generator=generator, dtype=torch.float64) + 3
    y = (y + torch.randn(N, DT, generator=generator, dtype=torch.float64)) * torch.tensor([0.1, 1, 10, 100]).double()
    weight = torch.rand(N, generator=generator, dtype=torch.float64) + 0.5
    return x.to(dtype), y.to(dtype), weight.to(dtype)


def gathered(parts):
    moments = Moments(DS, DT, CPU)
    for x, y, weight in parts:
        moments.add(x, y, weight)
    return moments


def assert_same_map(one, other, **tolerance):
    for name in ("weight", "bias", "mean", "deviation"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **tolerance)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_predictions_equal_scikit_learns_ridge_on_standardised_channels(ridge, weighted):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y, weight = pairs()
    weight = weight if weighted else torch.ones(N, dtype=torch.float64)
    moments = Moments(DS, DT, CPU)
    moments.add(x, y, weight if weighted else None)
    found = moments.solve(ridge)
    variance = torch.cov(x.T, aweights=weight, correction=0).diagonal().mean().item()
    theirs = linear_model.Ridge(alpha=ridge * variance * weight.sum().item())
    theirs.fit(x.numpy(), (y / found.deviation).numpy(), sample_weight=weight.numpy())
    expected = torch.from_numpy(theirs.predict(x.numpy())) * found.deviation
    torch.testing.assert_close(found(x), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.weight, torch.from_numpy(theirs.coef_), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.deviation, torch.cov(y.T, aweights=weight, correction=0).diagonal().sqrt())


def test_pieces_give_what_all_at_once_gives():
    pieces = zip(*(t.split([1, 50, 69]) for t in pairs()), strict=True)
    assert_same_map(gathered(pieces).solve(0.1), gathered([pairs()]).solve(0.1), rtol=1e-10, atol=1e-10)


def test_processes_share_their_pairs_and_may_solve_again(monkeypatch):
    mine, theirs = (gathered([part]) for part in zip(*(t.split([50, 70]) for t in pairs()), strict=True))
    others = itertools.cycle(theirs.sums.values())
    monkeypatch.setattr(regression.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(regression.dist, "all_reduce", lambda total: total.add_(next(others)))
    found = [mine.solve(ridge) for ridge in (0.5, 0.1)]
    monkeypatch.undo()
    for one, ridge in zip(found, (0.5, 0.1), strict=True):
        assert_same_map(one, gathered([pairs()]).solve(ridge), rtol=1e-10, atol=1e-10)


def test_autocast_does_not_coarsen_the_moments():
    x, y, weight = pairs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        under = gathered([(x, y, weight)])
    for name, total in gathered([(x, y, weight)]).sums.items():
        assert torch.equal(under.sums[name], total)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_layer_becomes_the_map_at_either_scale(scaled):
    x, y, weight = pairs()
    found, layer = gathered([(x, y, weight)]).solve(0.1), nn.Linear(DS, DT)
    found.put_into(layer, scaled=scaled)
    expected = found(x) if scaled else (found(x) - found.mean) / found.deviation
    torch.testing.assert_close(layer(x.float()), expected.float(), rtol=1e-5, atol=1e-4)
    assert layer.weight.requires_grad and layer.weight.dtype == torch.float32


def branches(student_side, teacher_side, shuffle=0):
    """A student whose tokens depend on the batch's images; a teacher that is two known maps of them, and the maps."""
    generator = torch.Generator().manual_seed(1)
    maps = [
        (torch.randn(DT, DS, generator=generator, dtype=torch.float64), torch.randn(DT, generator=generator).double())
        for _ in range(2)
    ]

    def student(crops):
        (group,) = crops
        tokens = F.adaptive_avg_pool2d(group.flatten(0, 1), student_side)  # [VB, DS, s, s]
        patches = tokens.flatten(2).transpose(1, 2).unflatten(0, group.shape[:2])
        return [BranchOutput(Tokens(patches.square().mean(2), patches))]

    def teacher(crops):
        own = student(crops)[0].tokens
        grid = own.patches.flatten(0, 1).transpose(1, 2).unflatten(2, (student_side, student_side))
        grid = F.interpolate(grid, size=(teacher_side, teacher_side), mode="bilinear").flatten(2).transpose(1, 2)
        inputs = (own.class_token, grid.unflatten(0, own.class_token.shape[:2]))
        outputs = [x @ weight.T + bias for x, (weight, bias) in zip(inputs, maps, strict=True)]
        return [BranchOutput(Tokens(*outputs))]

    return student, teacher, maps


@pytest.mark.parametrize("teacher_side", [4, 6, 3])
def test_fitting_finds_known_maps_again_whatever_the_teachers_grid(teacher_side):
    student, teacher, maps = branches(4, teacher_side)
    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch(torch.randn(2, 8, DS, 12, 12, generator=generator, dtype=torch.float64), *[torch.empty(0)] * 3)
        for _ in range(3)
    ]
    found = fit_maps(student, teacher, iter(batches), device=CPU, ridge=0.0)
    for one, (weight, bias) in zip(found, maps, strict=True):
        assert isinstance(one, LinearMap) and one.weight.dtype == torch.float64
        x = torch.randn(5, DS, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(one(x), x @ weight.T + bias, rtol=1e-6, atol=1e-6)
