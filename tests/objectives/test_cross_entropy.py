import pytest
import torch
import torch.nn.functional as F

from dinov2_zoo.objectives.centering import sinkhorn_bias
from dinov2_zoo.objectives.cross_entropy import chunked_cross_entropy, plain_cross_entropy
from dinov2_zoo.objectives.targets import Targets


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def targets(n, k, seed):
    bias = torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Targets(unit(n, 6, seed=seed), unit(k, 6, seed=seed + 1), bias, temperature=0.07)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_chunked_equals_plain_with_its_gradient(chunk, count):
    goals = [targets(13, 30, seed=10 * i) for i in range(count)]
    results = []
    for compute in (plain_cross_entropy, lambda *a, **o: chunked_cross_entropy(*a, chunk=chunk, **o)):
        z, w = unit(13, 4, seed=50).requires_grad_(), (1.3 * unit(30, 4, seed=51)).requires_grad_()
        loss = compute(z, w, goals, temperature=0.1)
        (loss * 0.37).backward()
        results.append((loss.detach(), z.grad, w.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


def test_no_tokens_cost_nothing():
    z, w = torch.zeros(0, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    none = Targets(torch.zeros(0, 4), torch.ones(3, 4), torch.zeros(3), 0.1)
    loss = chunked_cross_entropy(z, w, [none], temperature=0.1)
    loss.backward()
    assert loss.item() == 0 and not w.grad.any()


def test_sinkhorn_spreads_tokens_over_prototypes():
    z, w = unit(400, 6, seed=1), unit(10, 6, seed=2)
    bias = sinkhorn_bias(z, w, temperature=0.07, iterations=50, chunk=33)
    share = Targets(z, w, bias, 0.07).probabilities().mean(0)
    torch.testing.assert_close(share, torch.full_like(share, 0.1), atol=1e-4, rtol=0)
    before = Targets(z, w, torch.zeros(10, dtype=torch.float64), 0.07).probabilities().mean(0)
    assert (before - 0.1).abs().max() > 0.02


def test_sinkhorn_does_not_overflow_where_exponentials_would():
    z, w = unit(64, 6, seed=1).float(), 40 * unit(10, 6, seed=2).float()  # logits up to 1000
    assert sinkhorn_bias(z, w, temperature=0.04).isfinite().all()
