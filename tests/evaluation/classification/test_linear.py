"""Linear probes: the grid equals separate trainings, resumes, survives infinite probes, and says how its winner won."""

import pytest
import torch
import torch.nn.functional as F
from colour_folders import colours
from safetensors.torch import load_file
from stand_ins import tiny_encoder, together, workspace
from torch import nn

from dinov2_zoo.config.classification import LinearConfig
from dinov2_zoo.errors import CheckpointError, ConfigError
from dinov2_zoo.evaluation.classification import linear
from dinov2_zoo.evaluation.classification.labelled import LabelledData
from dinov2_zoo.evaluation.classification.linear import augmented, evaluate_linear
from dinov2_zoo.evaluation.classification.probe_grid import ProbeGrid, cosine_factor
from dinov2_zoo.training.distributed import SingleProcess

RATES = (1e-3, 1e-2, 0.1)


def batches(count, width=6, classes=3):
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, width, generator=draw), torch.randint(0, classes, (8,), generator=draw)) for _ in range(count)
    ]


def test_the_grid_equals_separate_probes_trained_by_torch(float64):
    grid = ProbeGrid({"a": 4, "b": 6}, 3, RATES, torch.Generator().manual_seed(0), 2.0)
    probes, optimizers = [], []
    for name, width in (("a", 4), ("b", 6)):
        for number, rate in enumerate(RATES):
            probe = nn.Linear(width, 3)
            rows = grid.weights[name].detach()[3 * number : 3 * number + 3]
            probe.weight.data, probe.bias.data = rows[:, :-1].clone(), rows[:, -1].clone()
            probes.append(probe)
            optimizers.append(torch.optim.SGD(probe.parameters(), lr=2 * rate, momentum=0.9))
    steps = batches(20)
    for step, (x, y) in enumerate(steps):
        x = x.double()
        inputs = {"a": x[:, :4], "b": x}
        grid.step(inputs, y, cosine_factor(step, 20), SingleProcess())
        for number, (probe, optimizer) in enumerate(zip(probes, optimizers, strict=True)):
            optimizer.param_groups[0]["lr"] = 2 * RATES[number % 3] * cosine_factor(step, 20)
            optimizer.zero_grad()
            F.cross_entropy(probe(inputs["a" if number < 3 else "b"]), y).backward()
            optimizer.step()
    x = steps[0][0].double()
    separate = torch.stack([probe(x[:, :4] if n < 3 else x) for n, probe in enumerate(probes)], 1)
    assert torch.allclose(grid({"a": x[:, :4], "b": x}), separate, atol=1e-10)
    assert grid.names == ["a/lr0.001", "a/lr0.01", "a/lr0.1", "b/lr0.001", "b/lr0.01", "b/lr0.1"]


def test_a_probe_that_becomes_infinite_harms_no_other():
    def trained(rates):
        grid = ProbeGrid({"a": 6}, 3, rates, torch.Generator().manual_seed(0))
        for x, y in batches(60):
            grid.step({"a": 100 * x}, y, 1.0, SingleProcess())
        return grid

    grid = trained((1e-3, 1e37))
    assert grid.dead() == {"a/lr1e+37"}
    fine = trained((1e-3, 1e-3))({"a": torch.ones(2, 6)})[:, 0]
    assert torch.allclose(grid({"a": torch.ones(2, 6)})[:, 0], fine, atol=1e-5)


def test_rates_fall_by_a_cosine():
    assert [round(cosine_factor(step, 100), 4) for step in (0, 50, 100)] == [1.0, 0.5, 0.0]


SMALL = LinearConfig(steps=40, batch_size=12, rates=(0.01, 1.0), size=28, path="cached", save_every=10, workers=0)


def task(tmp_path, config=SMALL, processes=None, out="out", **options):
    train = options.pop("train", None) or colours(tmp_path / f"train-{out}")
    test = options.pop("test", None) or colours(tmp_path / f"test-{out}", count=3)
    data = LabelledData(train, test, "folder", **options)
    return evaluate_linear(tiny_encoder(), data, config, workspace(tmp_path / out, processes))


def test_colours_are_learnt_by_every_kind_of_input_and_all_probes_are_kept(tmp_path):
    result = task(tmp_path)
    probes = {name: value for name, value in result.metrics.items() if name.startswith("probe/")}
    assert probes.keys() == {
        f"probe/{name}/lr{rate}" for name in ("last1", "last1+mean", "last4", "last4+mean") for rate in ("0.01", "1")
    }
    assert result.metrics["top1"] == max(probes.values()) > 0.8
    assert "chosen on the test images" in result.notes[0] and any("Cached" in note for note in result.notes)


def test_the_winner_may_be_chosen_without_the_test_images(tmp_path):
    config = LinearConfig(**{**vars(SMALL), "choose_on": "heldout"})
    assert "held-out training images" in task(tmp_path, config).notes[0]


def test_augmented_images_lead_there_too(tmp_path):
    config = LinearConfig(**{**vars(SMALL), "path": "augmented", "steps": 20})
    result = task(tmp_path, config)
    assert result.metrics["top1"] > 0.6 and not any("Cached" in note for note in result.notes)


def test_a_stopped_training_goes_on_to_the_same_probes(tmp_path, monkeypatch):
    train, test = colours(tmp_path / "train"), colours(tmp_path / "test", count=3)
    config = LinearConfig(**{**vars(SMALL), "path": "augmented", "steps": 12, "save_every": 5})
    whole = task(tmp_path, config, out="whole", train=train, test=test)
    original, steps = ProbeGrid.step, []

    def stop_after_seven(self, *args):
        if len(steps) == 7:
            raise KeyboardInterrupt
        steps.append(1)
        original(self, *args)

    monkeypatch.setattr(ProbeGrid, "step", stop_after_seven)
    with pytest.raises(KeyboardInterrupt):
        task(tmp_path, config, out="stopped", train=train, test=test)
    monkeypatch.setattr(ProbeGrid, "step", original)
    resumed = task(tmp_path, config, out="stopped", train=train, test=test)
    assert resumed.metrics == whole.metrics
    ours, theirs = (
        load_file(next((tmp_path / name / "linear").glob("*.safetensors"))) for name in ("whole", "stopped")
    )
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_processes_train_the_probes_of_one(tmp_path):
    train, test = colours(tmp_path / "train"), colours(tmp_path / "test", count=3)
    alone = task(tmp_path, out="alone", train=train, test=test)
    for found in together(lambda p: task(tmp_path, processes=p, out="two", train=train, test=test)):
        assert found.metrics == pytest.approx(alone.metrics, abs=1e-6)


def test_damaged_probes_are_named(tmp_path):
    train, test = colours(tmp_path / "train"), colours(tmp_path / "test", count=3)
    task(tmp_path, train=train, test=test)
    file = next((tmp_path / "out" / "linear").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"probes-.*cannot be read"):
        task(tmp_path, train=train, test=test)


def test_more_blocks_than_the_model_has_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="The model has 4 blocks"):
        task(tmp_path, LinearConfig(**{**vars(SMALL), "blocks": (1, 5)}))


def test_augmentation_follows_from_the_generator_and_stays_in_the_image():
    pixels = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    one, again, other = (augmented(pixels, 28, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert one.shape == (3, 28, 28) and torch.equal(one, again) and not torch.equal(one, other)
    assert linear.CHOICE_SHARE == 0.1
