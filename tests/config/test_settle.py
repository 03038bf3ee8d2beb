"""What "auto" becomes: always something that works, and what was asked for where it was."""

import dataclasses
import json

import pytest

from dinov2_zoo.config import (
    AgreementConfig,
    DistillConfig,
    FinishConfig,
    LoaderConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    to_dict,
)
from dinov2_zoo.config.auto import is_auto, seconds
from dinov2_zoo.config.settle import Cost, Hardware, adopt, settle_data, settle_length
from dinov2_zoo.errors import ConfigError

LAPTOP, SERVER = Hardware("cpu", 1, 2), Hardware("cuda", 8, 12)
COST = Cost(train=0.1, forward=0.02, decode=0.01, memory=1e8, free=1e10)


def settled(config, images, hardware=LAPTOP, cost=COST):
    half = settle_data(config, images, apart=False, hardware=hardware)
    kept = getattr(half.evaluation, "heldout_count", 0)
    return settle_length(config, half, images - kept, cost, hardware)


def leaves(config):
    for value in config.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


@pytest.mark.parametrize("hardware", [LAPTOP, SERVER], ids=["laptop", "server"])
@pytest.mark.parametrize("images", [8, 9, 20, 43, 300, 1_281_167])
@pytest.mark.parametrize("kind", [DistillConfig, PretrainConfig])
def test_any_folder_of_eight_images_or_more_gets_settings_that_work(kind, images, hardware):
    if images < 2 * hardware.processes:
        hardware = dataclasses.replace(hardware, processes=2)
    config, expected = settled(kind(data="x", name="x"), images, hardware)
    config = dataclasses.replace(config, runtime=RuntimeConfig(precision="fp32"))  # which the runtime settles
    assert not any(is_auto(value) for value in leaves(to_dict(config)))
    train = images - getattr(config.evaluation, "heldout_count", 0)
    assert hardware.processes <= config.loader.batch_size <= train
    assert config.loader.batch_size % hardware.processes == 0
    assert 0 <= config.optim.warmup_steps <= config.optim.steps / 3 + 1
    assert expected > 0
    # What was settled stays: a resumed run comes to the same.
    assert settled(config, images, hardware)[0] == config


def test_the_rules_meet_the_presets_that_they_were_made_from():
    small = OptimConfig(steps=90).settled()
    assert small.warmup_steps == 30 and small.ema_momentum == pytest.approx((0.9, 0.995), abs=1e-3)
    paper = OptimConfig(steps=625_000).settled()
    assert paper.ema_momentum == pytest.approx((0.994, 1.0), abs=1e-5) and paper.freeze_last_layer_steps == 1250


def test_time_is_kept_whatever_a_step_costs():
    for cost in (0.01, 0.1, 1.0):
        config, expected = settled(DistillConfig(data="x", time="20m"), 200, cost=dataclasses.replace(COST, train=cost))
        assert expected <= 1200 and (expected > 900 or config.optim.steps == 1)
        assert config.time is None


def test_epochs_are_passes_over_the_images():
    config, _ = settled(DistillConfig(data="x", epochs=10, loader=LoaderConfig(batch_size=16)), 180)
    assert config.optim.steps == 10 * (180 - 22) // 16 + 1


def test_a_batch_is_cut_to_the_memory_there_is_unless_it_was_asked_for():
    tight = dataclasses.replace(COST, free=5.5e8)
    assert settled(DistillConfig(data="x"), 300, cost=tight)[0].loader.batch_size == 5
    asked = DistillConfig(data="x", loader=LoaderConfig(batch_size=24))
    assert settled(asked, 300, cost=tight)[0].loader.batch_size == 24


def test_the_finishing_stage_counts_in_time_and_memory():
    config = DistillConfig(data="x", time="20m", finish=FinishConfig(share=0.2))
    half = settle_data(config, 200, apart=False, hardware=LAPTOP)
    finish = dataclasses.replace(COST, train=5 * COST.train, memory=4 * COST.memory)
    roomy = dataclasses.replace(COST, free=1e11)
    plain, expected = settle_length(config, half, 178, roomy, LAPTOP)
    longer, same = settle_length(config, half, 178, roomy, LAPTOP, finish=finish)
    assert longer.optim.steps == pytest.approx(plain.optim.steps / 1.8, rel=0.01)
    assert same == pytest.approx(expected, rel=0.01)
    tight = dataclasses.replace(COST, free=2.2e9)
    assert settle_length(config, half, 178, tight, LAPTOP, finish=finish)[0].loader.batch_size == 5


def test_all_that_cannot_work_is_named_at_once_with_what_would():
    config = DistillConfig(
        data="photos",
        loader=LoaderConfig(batch_size=60),
        optim=OptimConfig(accumulate=4),
        evaluation=AgreementConfig(heldout_count=32),
    )
    with pytest.raises(ConfigError) as error:
        settle_data(config, 43, apart=False, hardware=LAPTOP)
    words = str(error.value)
    assert "heldout_count 32 takes more than half of the 43 images: use at most 21" in words
    assert "batch_size 60 is more than the 11 images to train on: use at most 8" in words


def test_a_resumed_run_is_settled_as_it_was():
    was, _ = settled(DistillConfig(data="x", time="20m"), 200)
    was = dataclasses.replace(was, name="x", runtime=RuntimeConfig(precision="fp32"))
    record = json.loads(json.dumps(to_dict(was)))
    again = adopt(DistillConfig(data="x", time="2h"), record)
    assert again == was
    assert adopt(DistillConfig(data="x", optim=OptimConfig(steps=400)), record).optim.steps == 400


@pytest.mark.parametrize(
    ("text", "found"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("2d", 172_800), ("1.5h", 5400), ("20", None)]
)
def test_durations(text, found):
    assert seconds(text) == found
