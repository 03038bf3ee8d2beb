"""Batches on a GPU: queued one ahead on a stream of their own, waited for by the consumer's stream, never by the host.

There is no GPU here: streams and tensors are stand-ins that write down what is asked of them, in order.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from dinov2_zoo.config import CropConfig, LoaderConfig
from dinov2_zoo.data import device
from dinov2_zoo.data.batch import Batch
from dinov2_zoo.data.colour import ColourPlan
from dinov2_zoo.data.device import OnDevice
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.sources import open_source


class Pinned:
    """A batch of one tensor that notes where and when it goes."""

    def __init__(self, number, notes):
        self.number, self.notes = number, notes

    def to(self, where, non_blocking=False):
        assert non_blocking and torch.device(where).type == "cuda"
        self.notes.append(("copy", self.number, self.notes.stream))
        return self

    def map(self, action):
        tensor = SimpleNamespace(record_stream=lambda stream: self.notes.append(("keep", self.number, stream.name)))
        assert action(tensor) is tensor
        return self


class Notes(list):
    stream = "compute"


@pytest.fixture
def notes(monkeypatch):
    """Stand-ins for CUDA's streams."""
    notes = Notes()

    def stream(name):
        return SimpleNamespace(
            name=name,
            record_event=lambda: ("event", len([note for note in notes if note[0] == "copy"]) - 1),
            wait_event=lambda event: notes.append(("wait", event[1], name)),
        )

    @contextlib.contextmanager
    def within(inner):
        before, notes.stream = notes.stream, inner.name
        yield
        notes.stream = before

    monkeypatch.setattr(torch.cuda, "Stream", lambda where: stream("copies"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: stream(notes.stream))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(device, "ready", lambda batch: notes.append(("ready", batch.number, notes.stream)) or batch)
    return notes


def test_the_next_batch_is_queued_before_one_is_given_out(notes):
    batches = OnDevice([Pinned(number, notes) for number in range(3)], torch.device("cuda"))
    for batch in batches:
        notes.append(("step", batch.number, notes.stream))
    placed = [[("copy", i, "copies"), ("ready", i, "copies")] for i in range(3)]
    taken = [[("wait", i, "compute"), ("keep", i, "compute"), ("step", i, "compute")] for i in range(3)]
    assert notes == [*placed[0], *placed[1], *taken[0], *placed[2], *taken[1], *taken[2]]
    assert len(batches) == 3
    assert list(OnDevice([], torch.device("cuda"))) == []


def test_on_a_cpu_nothing_is_ahead_and_no_stream_is_asked_for(notes):
    asked = []

    def made():
        for number in range(3):
            asked.append(number)
            yield SimpleNamespace(number=number, to=lambda where, number=number: SimpleNamespace(number=number))

    for step, batch in enumerate(OnDevice(made(), torch.device("cpu"))):
        assert batch.number == step and asked == list(range(step + 1))
    assert notes == [("ready", number, "compute") for number in range(3)]


def test_every_tensor_but_the_seeds_moves():
    crops = torch.zeros(2, 3, 3, 4, 4, dtype=torch.uint8)
    plan = ColourPlan.of([{0: ("grey", 0.0)}] * 6)
    batch = Batch(
        crops, crops, torch.arange(3), torch.arange(3), masks=crops[..., 0] > 0, targets=[crops.to(torch.int8)]
    )
    moved = batch.map(lambda tensor: tensor.to("meta"))
    assert moved.seeds.device.type == "cpu" and moved.targets[0].is_meta and moved.masks.is_meta
    assert moved.global_crops.is_meta and moved.local_crops.is_meta and moved.sample_ids.is_meta
    coloured = Batch(crops, crops, torch.arange(3), torch.arange(3), colours=(plan, plan)).to("meta").colours
    assert all(each.rows.is_meta and each.factors.is_meta and each.groups == (("grey", 6),) for each in coloured)


@pytest.mark.parametrize("colours", ["workers", "device"])
def test_what_leaves_the_workers_is_a_quarter_of_what_training_takes(colours, monkeypatch):
    sent = []
    monkeypatch.setattr(device, "ready", lambda batch: sent.append(batch) or batch)
    crops, loader = CropConfig(global_size=28, local_size=14, local_count=2), LoaderConfig(4, 0, colours=colours)
    (batch,) = train_loader(open_source("package:photos/train"), crops, loader, seed=0, steps=1)
    assert sent == [batch] and bool(batch.colours) == (colours == "device") and batch.seconds > 0
    for group in batch.groups():
        assert group.dtype == torch.uint8 and group.untyped_storage().nbytes() == group.numel()
    plans = sum(plan.rows.nbytes + plan.factors.nbytes for plan in batch.colours)
    assert plans < 0.02 * 4 * (2 * 224**2 + 8 * 98**2) * 3  # of the usual sizes
