"""The simulated peak against torch's allocator, which a real step of the same run is watched by."""

import pytest
from simulated_runs import distillation, pretraining
from torch.profiler import ProfilerActivity, profile

from dinov2_zoo.simulation.batch import micro_batch
from dinov2_zoo.simulation.networks import build, shapes_of
from dinov2_zoo.simulation.runtime import Processes
from dinov2_zoo.simulation.step import first_update, make_ready, settled, simulate
from dinov2_zoo.training.loop import train
from dinov2_zoo.training.runtime import Runtime

ON_CPU = Processes(on_gpus=False)


def allocated_at_most(config):
    """Bytes that a real step takes from the CPU's allocator beside what was there before it."""
    config, shape = shapes_of(settled(config, ON_CPU))
    with Runtime(config.runtime) as runtime:
        modules = build(config, shape)
        batch = micro_batch(config, modules[0], processes=1)
        lanes = [make_ready(c, m, runtime, batch) for c, m in zip(config.each(), modules, strict=True)]
        for lane in lanes:
            first_update(lane.state)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            train(runtime, lanes, [batch] * config.optim.accumulate)
    most = now = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(pretraining(0.0, activation_checkpointing=True), id="pretrain-checkpointing"),
        pytest.param(pretraining(prototypes=16384), id="pretrain"),
        pytest.param(distillation(), id="features"),
        pytest.param(distillation("prototypes", students=("small", "large"), init="random"), id="two-students"),
    ],
)
def test_the_peak_is_the_allocators(config):
    step = simulate(config, ON_CPU)
    beside = step.peak - sum(step.held.values())
    assert beside == pytest.approx(allocated_at_most(config), rel=0.01)
