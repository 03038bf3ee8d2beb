"""The fused kernels in Triton's interpreter, on CPU; `test_kernels.py` runs this file, where the interpreter is on."""

import dataclasses

import pytest
import tiny
import torch
import torch.nn.functional as F

from dinov2_zoo.objectives import fastest
from dinov2_zoo.objectives.column_sums import column_log_sums
from dinov2_zoo.objectives.cross_entropy import plain_cross_entropy
from dinov2_zoo.objectives.kernels import fused
from dinov2_zoo.objectives.kernels.attend import Tile, attend
from dinov2_zoo.objectives.kernels.choice import works
from dinov2_zoo.objectives.kernels.fused import fused_column_log_sums, fused_cross_entropy
from dinov2_zoo.objectives.targets import Targets

TILES = [Tile(16, 16, 4, 1), Tile(32, 32, 4, 1), Tile(256, 256, 4, 1)]
SIZES = [(TILES[0], 1, 1, 3, 5), (TILES[0], 37, 71, 20, 9), (TILES[1], 64, 32, 16, 16), (TILES[1], 17, 67, 5, 40)]
PAIRS = {
    "patches": [[1.0]],
    "all crops": [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]],
    "uneven": [[1.0, 0.3, 2.0]],
}
# fp32 products are exact to fp32 here. Rounding to bf16 moves each factor by up to 2^-9.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tile", "n", "m", "d", "e"), SIZES)
def test_attention_equals_its_formula(dtype, tile, n, m, d, e):
    q, k, v, bias = (t.to(dtype) for t in (unit(n, d, seed=1), unit(m, d, seed=2), unit(m, e, seed=3), unit(m, seed=4)))
    logits = q.double() @ k.double().T / 0.04 + bias.double()
    log_sums, means = attend(q, k, bias.float(), v, temperature=0.04, tile=tile)
    torch.testing.assert_close(log_sums.double(), logits.logsumexp(1), rtol=1e-6, atol=1e-5)
    assert log_sums.dtype == means.dtype == torch.float32
    assert relative(means, logits.softmax(1) @ v.double()) < {torch.float32: 1e-5, torch.bfloat16: 4e-3}[dtype]
    again, nothing = attend(q, k, bias.float(), None, temperature=0.04, tile=tile)
    assert torch.equal(again, log_sums) and nothing is None


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_both_gradients_equal_the_formula_in_float64(name, dtype):
    pairs, weighted = PAIRS[name], name != "all crops"
    pairs, images, count = torch.tensor(pairs), 13, 75
    views, seen = pairs.shape
    weights = torch.linspace(0.1, 2, images) if weighted else None
    goals = Targets(unit(seen * images, 24, seed=3), unit(count, 24, seed=4), 3 * unit(count, seed=5), 0.04)
    z, w = unit(views, images, 20, seed=1), 1.3 * unit(count, 20, seed=2)
    mine = [z.clone().requires_grad_(), w.clone().requires_grad_()]
    theirs = [z.double().requires_grad_(), w.double().requires_grad_()]
    exact = dataclasses.replace(
        goals, **{name: getattr(goals, name).double() for name in ("bottleneck", "prototypes", "bias")}
    )
    heavy = None if weights is None else weights.double()
    found = fused_cross_entropy(*mine, goals, pairs, temperature=0.1, weights=weights, tile=TILES[1], dtype=dtype)
    expected = plain_cross_entropy(*theirs, exact, pairs.double(), temperature=0.1, weights=heavy)
    (0.37 * found).backward()
    (0.37 * expected).backward()
    assert abs(found.item() - expected.item()) < TOLERANCE[dtype] * expected.item()
    for one, other in zip(mine, theirs, strict=True):
        assert relative(one.grad, other.grad) < (1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 40])
def test_column_sums_equal_those_in_chunks(dtype, length):
    z, w, log_u = unit(37, 20, seed=1), length * unit(75, 20, seed=2), 5 * unit(75, seed=3)
    z, w = (
        z.to(dtype).float(),
        w.to(dtype).float(),
    )  # logits up to 1000 overflow where exponentials are taken carelessly
    for given in (None, log_u):
        found = fused_column_log_sums(z, w, given, temperature=0.04, tile=TILES[1], dtype=dtype)
        double = None if given is None else given.double()
        expected = column_log_sums(z.double(), w.double(), double, temperature=0.04)
        seen = expected > -80
        torch.testing.assert_close(found.double()[seen], expected[seen], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_probe_finds_the_kernel_right_and_a_wrong_one_wrong(dtype, monkeypatch):
    assert works(TILES[2], torch.device("cpu"), 16, dtype)
    right = fused.attend
    monkeypatch.setattr(fused, "attend", lambda *a, **o: (1.1 * right(*a, **o)[0], right(*a, **o)[1]))
    assert not works(TILES[2], torch.device("cpu"), 16, dtype)
    monkeypatch.setattr(fused, "attend", lambda *a, **o: 1 / 0)
    assert not works(TILES[2], torch.device("cpu"), 16, dtype)


def test_the_whole_objective_is_the_same_by_the_kernel_as_in_chunks(monkeypatch):
    def terms():
        module.zero_grad()
        found = module(batch)
        found["loss"].backward()
        return found, torch.cat([p.grad.flatten() for p in module.student.parameters() if p.grad is not None])

    module, batch = tiny.prototypes(), tiny.batch(images=2, local=2)
    (expected, wanted), asked = terms(), []
    monkeypatch.setattr(fastest, "_ready", lambda tokens, width: asked.append(width) or TILES[2])
    found, gradients = terms()
    assert len(asked) == 2 * (3 + 1)  # two losses, each with three iterations of Sinkhorn-Knopp
    for name, term in expected.items():
        torch.testing.assert_close(found[name], term, rtol=1e-5, atol=1e-5)
    assert relative(gradients, wanted.double()) < 1e-5
