"""Steps in whitened coordinates equal training in them; what they are measured from."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dinov2_zoo.training.preconditioning import DAMPING, Coordinates, Preconditioner, White, measure_coordinates

WIDE, NARROW = 6, 4


class Small(nn.Module):
    """A linear layer behind a fixed view of its inputs, and a vector; takes groups of crops as a `Branch` does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDE, NARROW)
        self.gain = nn.Parameter(torch.full((NARROW,), 3.0))
        self.unused = nn.Linear(2, 2)

    def forward(self, groups):
        return self.gain * self.layer(groups[0])


def inputs(count=20000):
    """Tokens with a mean, and with directions of very different variance."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(WIDE, WIDE, generator=generator).double()
    return 5.0 + torch.randn(count, WIDE, generator=generator).double() * torch.logspace(-1, 1, WIDE).double() @ spread


def batch(tokens):
    return SimpleNamespace(global_crops=tokens)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def measured(monkeypatch, branch, tokens, rows=10**6):
    monkeypatch.setattr("dinov2_zoo.training.preconditioning.ROWS", rows)
    return measure_coordinates(branch, [batch(part) for part in tokens.split(7000)], device=torch.device("cpu"))


def test_inputs_become_white_and_sizes_are_those_of_the_coordinates(monkeypatch):
    torch.manual_seed(0)
    branch, tokens = Small(), inputs()
    found = measured(monkeypatch, branch, tokens)
    assert found.layers.keys() == {"layer"}  # nothing was given to `unused`
    white = found.layers["layer"]
    torch.testing.assert_close(white.mean, tokens.mean(0))
    covariance = tokens.T.cov(correction=0)
    damped = covariance + DAMPING * covariance.diagonal().mean() * torch.eye(WIDE)
    torch.testing.assert_close(white.root @ damped @ white.root, torch.eye(WIDE), rtol=0, atol=1e-8)
    v = branch.layer.weight @ torch.linalg.inv(white.root)
    assert found.sizes["layer.weight"] == pytest.approx(float(v.square().mean().sqrt()))
    assert found.sizes["layer.bias"] == pytest.approx(float(v.square().sum(1).mean().sqrt()))
    assert found.sizes["gain"] == pytest.approx(3.0)
    assert branch.training and not branch.layer._forward_pre_hooks


def test_a_part_of_the_rows_tells_nearly_the_same(monkeypatch):
    branch, tokens = Small(), inputs()
    whole, part = (measured(monkeypatch, branch, tokens, rows).layers["layer"].root for rows in (10**6, 3000))
    assert 0 < (whole - part).norm() / whole.norm() < 0.05


def loss(output):
    return (output - output.new_tensor([1.0, -2.0, 0.5, 3.0])).square().mean()


def test_steps_equal_adamw_on_the_layer_written_in_those_coordinates(monkeypatch):
    torch.manual_seed(1)
    branch, tokens, rate = Small(), inputs(200), 0.01
    found = measured(monkeypatch, branch, tokens)
    white, sizes = found.layers["layer"], found.sizes
    v = (branch.layer.weight @ torch.linalg.inv(white.root)).detach().requires_grad_()
    c = (branch.layer.bias + branch.layer.weight @ white.mean).detach().requires_grad_()
    gain = branch.gain.detach().clone().requires_grad_()
    # A step of `size` times the rate, tensor by tensor.
    groups = [(v, sizes["layer.weight"]), (c, sizes["layer.bias"]), (gain, sizes["gain"])]
    reference = torch.optim.AdamW([{"params": [p], "lr": rate * size} for p, size in groups], weight_decay=0, eps=1e-12)
    ours = torch.optim.AdamW([p for p in branch.parameters()], lr=rate, weight_decay=0, eps=1e-12)
    preconditioner = Preconditioner(branch, found)
    for step in range(12):
        some = tokens[step * 10 : step * 10 + 40]
        ours.zero_grad()
        loss(branch([some])).backward()
        with preconditioner.around_step():
            ours.step()
        reference.zero_grad()
        loss(gain * ((some - white.mean) @ white.root @ v.T + c)).backward()
        reference.step()
    torch.testing.assert_close(branch.layer.weight, v @ white.root)
    torch.testing.assert_close(branch.layer.bias, c - v @ white.root @ white.mean)
    torch.testing.assert_close(branch.gain, gain)


def test_a_layer_of_another_scale_takes_the_same_path():
    """Weights a hundred times smaller behind inputs a hundred times larger: what the layer puts out moves alike."""
    torch.manual_seed(2)
    tokens, paths = inputs(300), []
    for scale in (1.0, 100.0):
        torch.manual_seed(3)
        branch = Small()
        with torch.no_grad():
            branch.layer.weight /= scale
        found = measure_coordinates(branch, [batch(tokens * scale)], device=torch.device("cpu"))
        optimizer = torch.optim.AdamW(branch.parameters(), lr=0.02, weight_decay=0, eps=1e-12)
        preconditioner, told = Preconditioner(branch, found), []
        for _ in range(10):
            optimizer.zero_grad()
            now = loss(branch([tokens * scale]))
            now.backward()
            told.append(float(now))
            with preconditioner.around_step():
                optimizer.step()
        paths.append(told)
    assert paths[0] == pytest.approx(paths[1], rel=1e-6) and paths[0][-1] < paths[0][0]


def test_parameters_without_a_gradient_stay(monkeypatch):
    branch = Small()
    white = White(torch.zeros(WIDE), torch.eye(WIDE))
    coordinates = Coordinates({"layer": white}, {"layer.weight": 1.0, "layer.bias": 1.0, "unused.weight": 1.0})
    before = branch.unused.weight.clone()
    branch([inputs(5)]).sum().backward()
    optimizer = torch.optim.AdamW(branch.parameters(), lr=0.1)
    with Preconditioner(branch, coordinates).around_step():
        optimizer.step()
    assert torch.equal(branch.unused.weight, before)
