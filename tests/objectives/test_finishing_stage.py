"""Distillation in its finishing stage: student and teacher at their own sizes, on the teacher's grid."""

import dataclasses

import pytest
import tiny
import torch
import torch.nn.functional as F

from dinov2_zoo.config import FinishConfig
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.finishing import FinishingStage
from dinov2_zoo.objectives.distillation import Distillation


def at(batch, side):
    crops = batch.global_crops
    small = F.interpolate(crops.flatten(0, 1), size=(side, side), mode="bicubic", antialias=True)
    return dataclasses.replace(batch, global_crops=small.unflatten(0, crops.shape[:2]))


@pytest.fixture
def module() -> Distillation:
    return tiny.features()


@pytest.fixture
def batch() -> Batch:
    large = torch.randn(2, 5, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(tiny.batch(), global_crops=large, step=7)


def test_student_and_teacher_see_the_sizes_that_are_drawn(module, batch):
    stage = FinishingStage(0, (28, 42, 56), seed=0)
    steps = {stage.drawn(step): step for step in range(60)}
    for sides in ((28, 56), (56, 28), (42, 42)):
        module.stage = stage
        step = dataclasses.replace(batch, step=steps[sides])
        found = module(step)
        grids = [output.tokens.patches.shape[2] for output in module.teach(step)]
        assert grids == [(sides[1] // 7) ** 2, 4]
        module.stage = None
        expected = module(at(batch, sides[0]), module.teach(at(batch, sides[1])))
        torch.testing.assert_close(found, expected)
        found["loss"].backward()


def test_before_the_stage_nothing_is_resized(module, batch):
    module.stage = FinishingStage(8, (28,), seed=0)
    before = module(batch)
    module.stage = None
    assert torch.equal(before["loss"], module(batch)["loss"])


def test_a_run_without_a_stage_has_none(module):
    assert module.finishing(FinishConfig(), 28, steps=10, seed=0) is None
    assert module.finishing(FinishConfig(share=0.5), 28, steps=10, seed=3) == FinishingStage(5, (28, 42, 56), 3)
