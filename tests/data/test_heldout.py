"""What is held out is never trained on, and stays the same for a seed."""

import importlib.util

import pytest

from dinov2_zoo.data.heldout import open_images, split_by_class, split_heldout
from dinov2_zoo.data.package_photos import HELDOUT, TRAIN
from dinov2_zoo.errors import DataError


class Numbers:
    """A source whose images are their own numbers."""

    def __init__(self, count, labelled=True):
        self.count = count
        self.labels = [10 * index for index in range(count)] if labelled else None
        self.classes = [str(index) for index in range(10 * count)] if labelled else None

    def __len__(self):
        return self.count

    def read(self, index):
        return bytes([index])

    def name(self, index):
        return f"number {index}"


def names(source):
    return [source.name(i) for i in range(len(source))]


def test_every_image_is_on_one_side_and_keeps_its_bytes_name_and_label():
    source = Numbers(20)
    train, heldout = split_heldout(source, 6, seed=0)
    assert (len(train), len(heldout)) == (14, 6)
    assert sorted(names(train) + names(heldout)) == sorted(names(source))
    for part in (train, heldout):
        numbers = [part.read(i)[0] for i in range(len(part))]
        assert numbers == sorted(numbers)
        assert names(part) == [f"number {n}" for n in numbers]
        assert part.labels == [10 * n for n in numbers] and part.classes is source.classes


def test_sources_without_labels_stay_without():
    assert all(
        part.labels is None and part.classes is None for part in split_heldout(Numbers(4, labelled=False), 1, seed=0)
    )


def test_the_split_depends_on_seed_and_length_only():
    first = names(split_heldout(Numbers(100), 20, seed=3)[1])
    assert first == names(split_heldout(Numbers(100, labelled=False), 20, seed=3)[1])
    assert first != names(split_heldout(Numbers(100), 20, seed=4)[1])
    assert first != names(Numbers(20))  # drawn, not the first ones


def test_half_may_be_held_out_and_more_is_refused():
    assert [len(part) for part in split_heldout(Numbers(10), 5, seed=0)] == [5, 5]
    with pytest.raises(DataError, match=r"9 images are too few to keep 5 .* at most 4.*evaluation\.heldout"):
        split_heldout(Numbers(9), 5, seed=0)


@pytest.fixture
def folders(tmp_path):
    for folder, count in (("train", 6), ("other", 3)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            (tmp_path / folder / f"{number}.png").write_bytes(b"")
    return str(tmp_path / "train"), str(tmp_path / "other")


def test_images_named_for_measuring_leave_the_training_images_whole(folders):
    train, heldout = open_images(*folders)
    assert (len(train), len(heldout)) == (6, 3)


def test_a_folder_keeps_nothing_out_by_itself(folders):
    train, heldout = open_images(folders[0], None)
    assert len(train) == 6 and heldout is None


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("skimage", "sklearn", "foolbox")),
    reason="photo packages are not installed",
)
def test_what_the_source_itself_sets_aside_comes_before_what_could_be_taken_out():
    train, heldout = open_images("package:photos/train", None)
    assert names(train) == list(TRAIN) and names(heldout) == list(HELDOUT)


def test_each_class_gives_its_share_and_no_image_is_in_both():
    source = Numbers(16)
    source.labels = [0] * 10 + [1] * 4 + [2] * 2
    train, test = split_by_class(source, 0.2, seed=0)
    assert sorted(train.indices + test.indices) == list(range(16))
    assert [test.labels.count(label) for label in (0, 1, 2)] == [2, 1, 1]
    assert split_by_class(source, 0.2, seed=0)[1].indices == test.indices
    assert split_by_class(source, 0.2, seed=1)[1].indices != test.indices


def test_a_class_of_one_and_images_without_labels_cannot_be_split():
    with pytest.raises(DataError, match="Class 0 has one image only, number 0"):
        split_by_class(Numbers(3), 0.2, seed=0)
    with pytest.raises(DataError, match="no labels"):
        split_by_class(Numbers(3, labelled=False), 0.2, seed=0)


def test_what_is_left_to_train_on_takes_memory_for_what_is_held_out_only():
    source = Numbers(0)
    source.count, source.labels = 142_000_000, None
    train, heldout = split_heldout(source, 30, seed=0)
    apart = [int(name.split()[1]) for name in names(heldout)]
    assert len(train) == 142_000_000 - 30 and apart == sorted(set(apart)) and apart[-1] > 100_000_000
    for number in apart:  # its neighbours close the gap
        place = number - apart.index(number)
        assert [train.name(place - 1), train.name(place)] == [f"number {number - 1}", f"number {number + 1}"]
    with pytest.raises(IndexError):
        train.name(len(train))
