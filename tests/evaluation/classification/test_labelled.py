"""Labelled images that nothing can be learnt from are refused in one sentence, before any model is measured."""

from functools import cache

import pytest
from colour_folders import colours

from dinov2_zoo.config.evaluate import EvaluateConfig, EvaluationData
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.classification.labelled import TEST_SHARE
from dinov2_zoo.evaluation.suite import TASKS


def opened(task, root, test=None):
    config = EvaluateConfig(model="x", data=EvaluationData(train=str(root), test=None if test is None else str(test)))
    return TASKS[task].open(config, cache(lambda opener, text: opener(text)))


@pytest.mark.parametrize("task", ["knn", "linear", "logistic"])
def test_one_class_is_nothing_to_tell_apart(tmp_path, task):
    colours(tmp_path / "train", ("red",))
    with pytest.raises(DataError, match=r"^All 6 training images are of one class, .*: give a folder for each of two"):
        opened(task, f"imagenet:{tmp_path}@train")
    with pytest.raises(DataError, match="has no labels: give a folder for each class"):
        opened(task, tmp_path / "train")


def test_one_image_of_each_class_has_no_neighbour_and_leaves_none_to_learn_from(tmp_path):
    colours(tmp_path / "images", count=1)
    with pytest.raises(DataError, match=r"^Every class of .* has one image only, .*: give two images of a class, or"):
        opened("knn", tmp_path / "images")
    for task in ("linear", "logistic"):
        with pytest.raises(DataError, match=r"^Class 0 has one image only, .*: name test images"):
            opened(task, tmp_path / "images")
    colours(tmp_path / "test", count=1)
    assert len(opened("knn", tmp_path / "images", tmp_path / "test").test) == 3


def test_photos_without_folders_of_classes_are_refused(tmp_path):
    colours(tmp_path / "images")
    with pytest.raises(DataError, match="has no labels: give a folder for each class"):
        opened("knn", tmp_path / "images" / "red")


def test_a_fifth_of_each_class_is_kept_out_where_no_test_images_are_named(tmp_path):
    colours(tmp_path / "images", count=10)
    data = opened("linear", tmp_path / "images")
    assert TEST_SHARE == 0.2 and data.facts().images == {"train": 24, "test": 6}
    assert {data.test.labels.count(label) for label in range(3)} == {2}
    assert not {data.train.name(i) for i in range(24)} & {data.test.name(i) for i in range(6)}
    assert "20%" in data.split and opened("knn", tmp_path / "images").split == "leave-one-out"
