import copy

import pytest
import torch
from torch import nn

from dinov2_zoo.training.ema import update_ema


def pair():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    ema = copy.deepcopy(student).requires_grad_(False)
    student(torch.randn(8, 4))  # moves the batch norm's statistics
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    return ema, student


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_weights_are_averaged_and_buffers_copied(momentum):
    ema, student = pair()
    expected = [momentum * e + (1 - momentum) * s for e, s in zip(ema.parameters(), student.parameters(), strict=True)]
    before = [p.detach().clone() for p in student.parameters()]
    update_ema(ema, student, momentum)
    torch.testing.assert_close(list(ema.parameters()), expected)
    assert torch.equal(ema[1].running_mean, student[1].running_mean)
    assert ema[1].num_batches_tracked == student[1].num_batches_tracked == 1
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
