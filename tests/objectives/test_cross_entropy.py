"""Chunks against the formula, with gradients; Sinkhorn-Knopp against what it is for, its sums against a formula."""

import pytest
import torch
import torch.nn.functional as F

from dinov2_zoo.objectives.centering import sinkhorn_bias
from dinov2_zoo.objectives.column_sums import column_log_sums
from dinov2_zoo.objectives.cross_entropy import chunked_cross_entropy, plain_cross_entropy
from dinov2_zoo.objectives.targets import Targets

PAIRS = {
    "patches": [[1.0]],
    "half": [[0.5]],
    "two global views": [[0.0, 1.0], [1.0, 0.0]],
    "and three local": [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]],
    "more of the teacher's": [[1.0, 0.3, 2.0]],
}


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def targets(n, k, seed=1):
    bias = torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Targets(unit(n, 6, seed=seed), unit(k, 6, seed=seed + 1), bias, temperature=0.07)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [1, 12, 100])
@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS.keys())
def test_chunked_equals_plain_with_its_gradient(pairs, chunk, weighted):
    pairs = torch.tensor(pairs, dtype=torch.float64)
    views, seen = pairs.shape
    weights = torch.linspace(0.1, 2, 13, dtype=torch.float64) if weighted else None
    results = []
    for compute in (plain_cross_entropy, lambda *a, **o: chunked_cross_entropy(*a, chunk=chunk, **o)):
        z, w = unit(views, 13, 4, seed=50).requires_grad_(), (1.3 * unit(30, 4, seed=51)).requires_grad_()
        loss = compute(z, w, targets(13 * seen, 30), pairs, temperature=0.1, weights=weights)
        (loss * 0.37).backward()
        results.append((loss.detach(), z.grad, w.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


def test_the_plain_way_is_a_sum_over_pairs_of_the_same_image():
    z, w, goals = unit(2, 3, 4, seed=1), unit(5, 4, seed=2), targets(6, 5)
    pairs, weights = torch.tensor([[0.0, 2.0], [1.0, 3.0]]).double(), torch.tensor([1.0, 10.0, 100.0]).double()
    total = 0.0
    for v, g, image in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
        log_p = torch.log_softmax(w @ z[v, image] / 0.1, 0)
        logits = goals.prototypes @ goals.bottleneck[3 * g + image] / 0.07 + goals.bias
        total -= pairs[v, g] * weights[image] * (torch.softmax(logits, 0) * log_p).sum()
    found = plain_cross_entropy(z, w, goals, pairs, temperature=0.1, weights=weights)
    torch.testing.assert_close(found, total, rtol=1e-12, atol=0)


def test_no_tokens_cost_nothing():
    z, w = torch.zeros(1, 0, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    none = Targets(torch.zeros(0, 4), torch.ones(3, 4), torch.zeros(3), 0.1)
    loss = chunked_cross_entropy(z, w, none, torch.ones(1, 1), temperature=0.1)
    loss.backward()
    assert loss.item() == 0 and not w.grad.any()


def test_no_matrix_of_all_tokens_and_prototypes_is_made():
    class Largest(torch.overrides.TorchFunctionMode):
        elements = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.elements = max(self.elements, out.numel())
            return out

    z, w, goals = unit(1, 96, 4, seed=1).requires_grad_(), unit(50, 4, seed=2).requires_grad_(), targets(96, 50)
    with Largest() as largest:
        chunked_cross_entropy(z, w, goals, torch.ones(1, 1).double(), temperature=0.1, chunk=8).backward()
        sinkhorn_bias(goals.bottleneck, goals.prototypes, temperature=0.07, chunk=8)
    assert largest.elements == 3 * 8 * 50


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_column_sums_equal_their_formula(chunk):
    z, w, log_u = unit(13, 6, seed=1), unit(30, 6, seed=2), torch.randn(30, dtype=torch.float64)
    q = torch.exp(z @ w.T / 0.07)
    first = column_log_sums(z, w, None, temperature=0.07, chunk=chunk)
    torch.testing.assert_close(first, q.sum(0).log(), rtol=1e-12, atol=1e-12)
    later = column_log_sums(z, w, log_u, temperature=0.07, chunk=chunk)
    v = 1 / (q @ log_u.exp())
    torch.testing.assert_close(later, (v @ q).log(), rtol=1e-12, atol=1e-12)
    assert column_log_sums(z[:0], w, log_u, temperature=0.07).isneginf().all()


def test_sinkhorn_spreads_tokens_over_prototypes():
    z, w = unit(400, 6, seed=1), unit(10, 6, seed=2)
    bias = sinkhorn_bias(z, w, temperature=0.07, iterations=50, chunk=33)
    share = Targets(z, w, bias, 0.07).probabilities().mean(0)
    torch.testing.assert_close(share, torch.full_like(share, 0.1), atol=1e-4, rtol=0)
    before = Targets(z, w, torch.zeros(10, dtype=torch.float64), 0.07).probabilities().mean(0)
    assert (before - 0.1).abs().max() > 0.02


def test_sinkhorn_does_not_overflow_where_exponentials_would():
    z, w = unit(64, 6, seed=1), 40 * unit(10, 6, seed=2)  # logits up to 1000
    found = sinkhorn_bias(z.float(), w.float(), temperature=0.04)
    torch.testing.assert_close(found.double(), sinkhorn_bias(z, w, temperature=0.04), rtol=1e-3, atol=1e-3)
