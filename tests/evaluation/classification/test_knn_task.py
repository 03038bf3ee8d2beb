"""k-NN as a task: sharded over processes it is exact, few shots count, and classes that do not fit are refused."""

import pytest
import torch
from colour_folders import colours
from stand_ins import tiny_encoder, together, workspace

from dinov2_zoo.config.classification import KnnConfig
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation import neighbours
from dinov2_zoo.evaluation.classification import knn
from dinov2_zoo.evaluation.classification.knn import evaluate_knn
from dinov2_zoo.evaluation.classification.labelled import LabelledData
from dinov2_zoo.training.distributed import SingleProcess

CONFIG = KnnConfig(k=(1, 5, 20), size=28)


def task(train, test, folder, config=CONFIG, processes=None):
    return evaluate_knn(tiny_encoder(), LabelledData(train, test, "folder"), config, workspace(folder, processes))


def test_colours_are_told_apart_and_every_k_is_reported(tmp_path):
    train, test = colours(tmp_path / "train"), colours(tmp_path / "test", count=2)
    result = task(train, test, tmp_path / "out")
    assert result.metrics["k1"] == 1.0 and result.headline == "top1"
    assert result.metrics["top1"] == result.metrics["k18"]  # 20 lowered to the bank
    assert result.data.images == {"train": 18, "test": 6}


def test_leave_one_out_has_one_neighbour_fewer(tmp_path):
    result = task(colours(tmp_path / "train"), None, tmp_path / "out")
    assert {"k1", "k5", "k17"} <= result.metrics.keys()
    assert any("against all others" in note for note in result.notes)


def test_several_processes_find_what_one_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "TILE", 7)
    draw = torch.Generator().manual_seed(0)
    bank, labels = torch.randn(50, 8, generator=draw), torch.randint(0, 4, (50,), generator=draw)
    queries, truth = torch.randn(20, 8, generator=draw), torch.randint(0, 4, (20,), generator=draw)

    def measure(processes, own):
        asking = None if own else knn.Examples(queries, truth)
        return knn._accuracy(knn.Examples(bank, labels), asking, (1, 5, 30), 0.07, 6, processes)

    for own in (False, True):
        alone = measure(SingleProcess(), own)
        for found in together(lambda processes, own=own: measure(processes, own), world_size=3):
            assert found == alone


def test_a_few_shots_of_each_class_make_the_bank(tmp_path):
    train, test = colours(tmp_path / "train"), colours(tmp_path / "test", count=2)
    result = task(train, test, tmp_path / "out", KnnConfig(k=(1,), size=28, shots=(1, 2), tries=3))
    assert result.metrics["shots2"] == 1.0 and result.metrics["shots2_std"] == 0.0
    assert 0.3 < result.metrics["shots1"] <= 1.0


def test_chosen_shots_are_not_measured_on_themselves(tmp_path):
    # With all but one image of each class chosen, the rest is one image of each.
    measured = []
    original = knn._measure

    def spy(bank, queries, *args):
        measured.append((set(bank.indices.tolist()), queries and set(queries.indices.tolist())))
        return original(bank, queries, *args)

    knn._measure = spy
    try:
        task(colours(tmp_path / "t"), None, tmp_path / "out", KnnConfig(k=(1,), size=28, shots=(5,), tries=1))
    finally:
        knn._measure = original
    (_, against_itself), (bank, rest) = measured
    assert against_itself is None and len(bank) == 15 and len(rest) == 3 and not bank & rest


def test_classes_that_do_not_fit_are_named(tmp_path):
    train = colours(tmp_path / "train", ("blue", "green"))
    with pytest.raises(DataError, match="Class green is in the training set only"):
        task(train, colours(tmp_path / "test", ("blue", "red")), tmp_path / "out")
    with pytest.raises(DataError, match="test images have no labels"):
        task(train, open_source("package:photos/heldout"), tmp_path / "out")


def test_a_class_without_images_is_named(tmp_path):
    train = colours(tmp_path / "train")
    train.classes = [*train.classes, "violet"]
    with pytest.raises(DataError, match="violet has no training image"):
        task(train, None, tmp_path / "out")
