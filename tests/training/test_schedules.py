import math
from itertools import pairwise

import pytest
import torch

from dinov2_zoo.config import OptimConfig
from dinov2_zoo.training.schedules import Schedule, Schedules


def test_knots_of_warmup_and_cosine():
    lr = Schedule(first=2.0, last=0.5, steps=110, warmup=10)
    assert lr(0) == 0
    assert lr(5) == 1.0
    assert lr(10) == 2.0
    assert lr(60) == pytest.approx(1.25)
    assert lr(35) == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert lr(110) == lr(10**9) == 0.5


def test_warmup_rises_and_the_cosine_falls_without_a_jump():
    lr = [Schedule(1.0, 0.0, 100, 20)(s) for s in range(101)]
    assert all(b > a for a, b in pairwise(lr[:21]))
    assert all(b < a for a, b in pairwise(lr[20:]))
    assert max(abs(b - a) for a, b in pairwise(lr)) <= 0.05 + 1e-12


def test_a_run_that_is_all_warmup_ends_at_the_final_value():
    assert Schedule(1.0, 0.1, 10, 10)(9) == 0.9
    assert Schedule(1.0, 0.1, 10, 10)(10) == 0.1


def test_peak_follows_the_square_root_of_the_global_batch():
    config = OptimConfig(steps=10, warmup_steps=0, base_lr=1e-3)
    assert Schedules.of(config, 1024).lr(0) == pytest.approx(1e-3)
    assert Schedules.of(config, 4096).lr(0) == pytest.approx(2e-3)


def test_groups_get_their_share_and_the_last_layer_stands_still_first():
    schedules = Schedules.of(
        OptimConfig(steps=100, warmup_steps=0, weight_decay=(0.1, 0.3), freeze_last_layer_steps=5), 1024
    )
    tensors = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.AdamW(
        [
            {"params": [tensors[0]], "lr_multiplier": 0.2, "wd_multiplier": 0.0, "is_last_layer": False},
            {"params": [tensors[1]], "lr_multiplier": 1.0, "wd_multiplier": 1.0, "is_last_layer": True},
        ]
    )
    body, last = optimizer.param_groups
    schedules.apply(optimizer, 4)
    assert (last["lr"], body["weight_decay"]) == (0.0, 0.0)
    assert body["lr"] == pytest.approx(0.2 * schedules.lr(4)) and body["lr"] > 0
    schedules.apply(optimizer, 5)
    assert last["lr"] == schedules.lr(5) > 0
    schedules.apply(optimizer, 50)
    assert last["weight_decay"] == pytest.approx(0.2)
