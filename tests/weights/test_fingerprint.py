"""A fingerprint follows names, shapes, dtypes and every bit, and nothing else."""

import pytest
import torch

from dinov2_zoo.weights.fingerprint import weights_fingerprint

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2).bfloat16(), "scale": torch.tensor(0.5)}


def test_order_and_memory_layout_do_not_matter():
    strided = {**dict(reversed(STATE.items())), "weight": STATE["weight"].T.contiguous().T}
    assert not strided["weight"].is_contiguous()
    assert weights_fingerprint(strided) == weights_fingerprint(STATE)


@pytest.mark.parametrize(
    "change",
    [
        {"bias": (torch.ones(2).bfloat16().view(torch.int16) + 1).view(torch.bfloat16)},
        {"scale": torch.tensor(0.5).nextafter(torch.tensor(1.0))},
        {"weight": STATE["weight"].reshape(3, 2)},
        {"weight": STATE["weight"].double()},
        {"weight": STATE["weight"].view(torch.int32)},
        {"more": torch.zeros(0)},
    ],
    ids=["one bit", "one bit of a scalar", "shape", "precision", "type", "name"],
)
def test_any_change_shows(change):
    assert weights_fingerprint({**STATE, **change}) != weights_fingerprint(STATE)
