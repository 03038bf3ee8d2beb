"""Training a head: schedule and clipping by hand, and a state that does not fit is refused by name."""

import pytest
import torch
from PIL import Image
from stand_ins import workspace
from torch import nn

from dinov2_zoo.errors import CheckpointError
from dinov2_zoo.evaluation.dense.pairs import ReadPairs
from dinov2_zoo.evaluation.dense.training import SAVED, Schedule, train_head, warmup


class One:
    """One grey photo whose target is 1 everywhere."""

    def __len__(self):
        return 1

    def read(self, index):
        return Image.new("RGB", (4, 4), (128, 128, 128)), torch.ones(4, 4)

    def name(self, index):
        return "one"


def as_is(photo, target, randomness):
    return torch.ones(3, 4, 4), target


def train(folder, *, steps=3, clip=None, factor=lambda step: 1.0, protocol=None, slope=2.0):
    """A head with one number; its loss is that number times `slope`."""
    head = nn.Linear(1, 1, bias=False)
    nn.init.constant_(head.weight, 10.0)
    train_head(
        head,
        lambda batch, step: slope * head.weight.sum() * batch.targets.mean(),
        ReadPairs(One(), as_is),
        torch.optim.SGD(head.parameters(), lr=1.0),
        Schedule(steps, 2, factor, clip_norm=clip, save_every=1, workers=0),
        workspace(folder),
        protocol or {},
    )
    return head.weight.item()


def test_rates_follow_the_schedule(tmp_path):
    assert train(tmp_path / "a") == pytest.approx(10 - 3 * 2)
    assert train(tmp_path / "b", factor=lambda step: [1.0, 0.5, 0.0][step]) == pytest.approx(10 - 1.5 * 2)


def test_large_gradients_are_scaled_down(tmp_path):
    assert train(tmp_path, clip=0.5) == pytest.approx(10 - 3 * 0.5, abs=1e-4)


def test_warmup_is_linear():
    assert [warmup(step, 1500, 1e-6) for step in (0, 750, 1500, 39_999)] == pytest.approx(
        [1e-6, 0.5, 1.0, 1.0], abs=1e-6
    )


def test_a_finished_head_is_not_trained_again(tmp_path):
    assert train(tmp_path) == train(tmp_path, slope=99.0)


def test_a_state_of_other_settings_is_refused(tmp_path):
    train(tmp_path, protocol={"lr": 1})
    with pytest.raises(CheckpointError, match=r"head\.pt is of a training with other settings"):
        train(tmp_path, protocol={"lr": 2})


def test_a_damaged_state_is_named(tmp_path):
    train(tmp_path)
    file = tmp_path / SAVED
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"head\.pt cannot be read .*: remove it to train anew"):
        train(tmp_path)
