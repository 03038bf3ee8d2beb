"""The guard: what it keeps, when it cuts the rate, what it says, and that a student is never worse than its start."""

import pytest
import torch
from torch import nn

from dinov2_zoo.training.guard import Guard


def at(value):
    layer = nn.Linear(2, 2)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    return layer


def value(layer):
    return float(layer.weight.detach().mean())


class Course:
    """A run whose average is measured as told: step -> score. Weights equal the step that they come from."""

    def __init__(self, scores, *, steps=50, start=1.0):
        self.student, self.ema, self.scores, self.step, self.said = at(0.0), at(0.0), scores, 0, []
        self.guard = Guard(self.student, self.ema, measure=lambda: self.scores[self.step], start=start, steps=steps)

    def go(self, until):
        while self.step < until:
            self.step += 1
            for layer in (self.student, self.ema):
                for parameter in layer.parameters():
                    nn.init.constant_(parameter, float(self.step))
            self.guard(self.step, self.said.append)


def test_a_run_that_goes_well_keeps_its_last_average_and_says_nothing():
    course = Course({5: 1.1, 10: 1.2, 15: 1.15, 20: 1.3}, steps=20)
    course.go(20)
    course.guard.finish()
    assert value(course.ema) == 20 and course.guard.remarks == [] and course.said == [] and course.guard.rate == 1


def test_the_best_average_is_released_where_the_last_is_worse():
    course = Course({5: 1.1, 10: 1.4, 15: 1.2, 20: 1.3}, steps=20)
    course.go(20)
    course.guard.finish()
    assert value(course.ema) == 10 and course.guard.remarks == [
        "The student is the average of step 10, the best on images kept out."
    ]


def test_nothing_better_than_the_start_releases_the_start():
    course = Course({5: 0.9, 10: 1.0, 15: 0.5, 20: 0.7}, steps=20)
    course.go(20)
    course.guard.finish()
    assert value(course.ema) == 0 and "The student is its start" in course.guard.remarks[-1]


def test_twice_below_the_start_halves_the_rate_and_goes_back():
    course = Course({5: 1.2, 10: 0.9, 15: 0.8, 20: 0.7, 25: 0.6}, steps=30)
    course.go(10)
    assert course.guard.rate == 1 and value(course.student) == 10
    course.go(15)
    assert course.guard.rate == 0.5 and value(course.student) == value(course.ema) == 5  # the best so far
    assert "fallen below the start (0.800, 1.000)" in course.said[0] and len(course.said) == 1
    course.go(20)
    assert course.guard.rate == 0.5  # it counts anew
    course.go(25)
    assert course.guard.rate == 0.25 and "cut to 0.25" in course.guard.remarks[0]


def test_a_dip_is_forgiven_and_so_is_one_low_measurement():
    course = Course({5: 0.9, 10: 1.1, 15: 0.9, 20: 1.1, 25: 0.9}, steps=30)
    course.go(29)
    assert course.guard.rate == 1 and course.said == []
    course = Course(dict.fromkeys(range(5, 30, 5), 0.951), steps=30)
    course.go(29)
    assert course.guard.rate == 1
    course = Course(dict.fromkeys(range(5, 30, 5), 0.949), steps=30)
    course.go(29)
    assert course.guard.rate == 0.25


@pytest.mark.parametrize(("steps", "every"), [(7, 5), (50, 5), (51, 6), (200, 20)])
def test_how_often_it_measures(steps, every):
    course, asked = Course({}, steps=steps), []
    course.guard.measure = lambda: asked.append(course.step) or 2.0
    course.go(steps)
    assert asked == list(range(every, steps, every))


def test_its_tensors_carry_it_over():
    """A run that was stopped in between goes on as if it had not been."""
    scores = {5: 1.2, 10: 0.9, 15: 0.8, 20: 1.1, 25: 0.9, 30: 1.15}
    whole = Course(scores, steps=30)
    whole.go(30)
    whole.guard.finish()
    first, second = Course(scores, steps=30), Course(scores, steps=30)
    first.go(12)
    for mine, theirs in zip(second.guard.tensors().values(), first.guard.tensors().values(), strict=True):
        mine.copy_(theirs)
    second.step = 12
    second.go(30)
    second.guard.finish()
    assert value(second.ema) == value(whole.ema) == 5
    assert torch.equal(second.guard.tensors()["numbers"], whole.guard.tensors()["numbers"])
    assert second.guard.remarks == whole.guard.remarks
