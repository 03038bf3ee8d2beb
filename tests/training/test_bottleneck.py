"""One sentence about what takes the time, after a few steps that are measured, and nothing afterwards."""

import re
import time
from dataclasses import dataclass

import pytest
import tiny
import torch
from torch import nn

from dinov2_zoo.training import bottleneck
from dinov2_zoo.training.bottleneck import SKIP, STEPS, Bottleneck, in_words

CPU = torch.device("cpu")


@dataclass
class Output:
    tokens: list[torch.Tensor]


torch.export.register_dataclass(Output)


class Slow(nn.Module):
    """Takes so many of the clock's seconds forward, and as many backward."""

    def __init__(self, clock, seconds, grad=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=grad)
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        self.clock.now += self.seconds
        y = x * self.weight
        return Output([Wait.apply(y, self.clock, self.seconds) if y.requires_grad else y])


class Wait(torch.autograd.Function):
    """Nothing forward; takes time backward."""

    @staticmethod
    def forward(ctx, x, clock, seconds):
        ctx.clock, ctx.seconds = clock, seconds
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        ctx.clock.now += ctx.seconds
        return gradient, None, None


class Module(nn.Module):
    def __init__(self, clock, teacher, student, loss, frozen=True):
        super().__init__()
        self.clock, self.loss = clock, loss
        self.student = Slow(clock, student)
        setattr(self, "teacher" if frozen else "ema", Slow(clock, teacher, grad=False))

    def forward(self, x):
        known = self.teacher(x) if hasattr(self, "teacher") else self.ema(x)
        found = self.student(x)
        self.clock.now += self.loss
        difference = Wait.apply(found.tokens[0], self.clock, self.loss) - known.tokens[0].detach()
        return difference.square().sum()


@dataclass
class Made:
    seconds: float


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def said_of(clock, module, *, steps=SKIP + STEPS, workers=2, made=0.1, waited=0.0, update=0.0):
    said = []
    watch = Bottleneck([module], CPU, workers=workers, say=said.append)
    for _ in range(steps):
        watch.begin()
        clock.now += waited
        watch.mark("data")
        loss = module(torch.ones(3))
        watch.mark("loss")
        loss.backward()
        watch.mark("student")
        clock.now += update
        watch.end([Made(made / 2), Made(made / 2)])
    return said


def test_forward_and_backward_of_each_part_are_told_apart(clock):
    (sentence,) = said_of(clock, Module(clock, teacher=2.0, student=3.0, loss=0.75), update=0.5, made=4.0)
    assert sentence.startswith(
        "A step computes for 10 s (teacher 20%, student 60%, loss 15%, update 5%); its data take 2 s with 2 workers. "
        "The student is the bottleneck: "
    )


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        ({"teacher": 9.0, "student": 1.0, "loss": 1.0}, {}, "The teacher is the bottleneck: store what it says once"),
        ({"teacher": 1.0, "student": 1.0, "loss": 9.0}, {}, "The loss is the bottleneck: lower the number of proto"),
        ({"teacher": 9.0, "student": 1.0, "loss": 1.0, "frozen": False}, {}, "The averaged teacher is the bottleneck"),
        (
            {"teacher": 1.0, "student": 1.0, "loss": 1.0},
            {"made": 12.1},  # 6.05 s with two workers, and a step computes for 5
            r"The data are the bottleneck: raise loader\.workers \(now 2\)",
        ),
        (
            {"teacher": 1.0, "student": 1.0, "loss": 1.0},
            {"workers": 0, "waited": 2.5, "made": 2.4},
            r"its data take 2\.5 s\. The data are the bottleneck: raise loader\.workers \(now 0\)",
        ),
    ],
)
def test_what_takes_longest_is_named_with_a_remedy(clock, module, options, words):
    (sentence,) = said_of(clock, Module(clock, **module), **options)
    assert re.search(words, sentence), sentence


def test_after_the_sentence_no_hook_is_left_and_no_device_is_waited_for(clock, monkeypatch):
    module, waits = Module(clock, 1.0, 1.0, 1.0), []
    monkeypatch.setattr(Bottleneck, "_now", lambda self: waits.append(1) or clock.now)
    assert len(said_of(clock, module, steps=SKIP)) == 0 and waits == []
    assert len(said_of(clock, module, steps=SKIP + STEPS + 20)) == 1
    assert 0 < len(waits) <= 10 * STEPS
    for child in module.modules():
        assert not child._forward_hooks and not child._forward_pre_hooks


def test_a_gpu_is_waited_for_while_it_is_measured_and_not_before_or_after(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    watch, counts = Bottleneck([], torch.device("cuda"), workers=1, say=lambda _: None), []
    for _ in range(SKIP + STEPS + 3):
        watch.begin()
        watch.mark("student")
        watch.end([Made(0.1)])
        counts.append(len(waits))
    assert counts == [0] * SKIP + [3 * (step + 1) for step in range(STEPS)] + [3 * STEPS] * 3


def test_pretraining_is_told_of_its_average_and_distillation_of_its_teacher():
    for module, batch, part in (
        (tiny.self_distillation(), tiny.masked_batch(), "average"),
        (tiny.features(), tiny.batch(), "teacher"),
    ):
        told = []
        watch = Bottleneck([module], CPU, workers=0, say=told.append)
        for _ in range(SKIP + STEPS):
            watch.begin()
            watch.mark("data")
            module(batch)["loss"].backward()
            watch.end([batch])
        assert len(told) == 1 and f"({part} " in told[0] and ", student " in told[0]


def test_a_sentence_needs_no_teacher():
    words = in_words({"data": 0.0, "made": 1.0, "student": 0.02, "loss": 0.01}, 100)
    assert words.startswith("A step computes for 30 ms (student 67%, loss 33%); its data take 10 ms with 100 workers.")
    assert bottleneck.ADVICE["student"] in words


def test_numbers_are_plain_ones():
    words = in_words({"data": 0.0, "made": 0.31, "student": 123.4}, 1)
    assert words.startswith("A step computes for 123 s (student 100%); its data take 310 ms with 1 worker.")
