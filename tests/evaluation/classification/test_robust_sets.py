"""ImageNet and its robustness sets as they lie on disk, and what counts as right on each."""

import json

import pytest
import torch
from PIL import Image
from stand_ins import tiny_encoder, workspace

from dinov2_zoo.config.classification import LinearConfig
from dinov2_zoo.data.image_sets import open_labelled
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.classification.labelled import LabelledData
from dinov2_zoo.evaluation.classification.linear import evaluate_linear
from dinov2_zoo.evaluation.classification.robust_sets import ALEXNET, RobustSet, open_robust, robust_accuracy

WNIDS = ["n01440764", "n01443537", "n01484850"]


def image(path, colour=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path)


@pytest.fixture
def imagenet(tmp_path):
    for number, wnid in enumerate(WNIDS):
        for image_number in range(4):
            colour = [image_number * 10] * 3
            colour[number] = 220
            image(tmp_path / "in1k" / "train" / wnid / f"{wnid}_{image_number}.JPEG", tuple(colour))
    return tmp_path / "in1k"


def test_class_numbers_follow_the_sorted_wnids(imagenet):
    train = open_labelled(f"imagenet:{imagenet}@train")
    assert train.classes == WNIDS and train.labels == [0] * 4 + [1] * 4 + [2] * 4


def test_a_flat_validation_folder_needs_its_list(imagenet):
    for number in (1, 2):
        image(imagenet / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    with pytest.raises(DataError, match=r"is flat and has no val\.txt"):
        open_labelled(f"imagenet:{imagenet}@val")
    (imagenet / "val.txt").write_text("ILSVRC2012_val_00000002.JPEG 2\nILSVRC2012_val_00000001.JPEG 1\n")
    assert open_labelled(f"imagenet:{imagenet}@val").labels == [1, 2]
    (imagenet / "val.txt").write_text("ILSVRC2012_val_00000002.JPEG 2\n")
    with pytest.raises(DataError, match=r"has no line for ILSVRC2012_val_00000001"):
        open_labelled(f"imagenet:{imagenet}@val")
    (imagenet / "val.txt").write_text("a b c\n")
    with pytest.raises(DataError, match=r"val\.txt, line 1"):
        open_labelled(f"imagenet:{imagenet}@val")


def test_a_split_must_be_named(imagenet):
    with pytest.raises(DataError, match="names no split"):
        open_labelled(f"imagenet:{imagenet}")


def test_predictions_are_sought_among_the_classes_of_imagenet_a(imagenet, tmp_path):
    train = open_labelled(f"imagenet:{imagenet}@train")
    for wnid in WNIDS[1:]:
        image(tmp_path / "a" / wnid / "x.jpg")
    found = open_robust(f"imagenet-a:{tmp_path / 'a'}", train)
    assert found.allowed == [1, 2]
    logits = torch.tensor([[9.0, 1, 0], [9, 1, 0]])  # class 0 would win, but is not there
    assert robust_accuracy(logits, [0, 1], found) == 0.5
    assert robust_accuracy(logits, [0, 1], open_robust(f"imagenet-sketch:{tmp_path / 'a'}", train)) == 0.0


def test_folders_of_v2_are_numbers_not_words(imagenet, tmp_path):
    for number in (0, 2, 10):
        image(tmp_path / "v2" / str(number) / "x.jpeg")
    found = open_robust(f"imagenet-v2:{tmp_path / 'v2'}", open_labelled(f"imagenet:{imagenet}@train"))
    names = [found.source.name(index).split("/")[-2] for index in range(3)]
    assert [sorted(answer)[0] for answer in found.right] == [int(name) for name in names]
    image(tmp_path / "v2" / "n01440764" / "x.jpeg")
    with pytest.raises(DataError, match="does not lie in a folder named by its class number"):
        open_robust(f"imagenet-v2:{tmp_path / 'v2'}", open_labelled(f"imagenet:{imagenet}@train"))


def test_any_of_reals_labels_is_right_and_images_without_are_left_out(imagenet):
    for number in (1, 2, 3):
        image(imagenet / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    (imagenet / "real.json").write_text(json.dumps([[0, 2], [], [1]]))
    found = open_robust(f"real:{imagenet}", open_labelled(f"imagenet:{imagenet}@train"))
    assert len(found.source) == 2
    logits = torch.tensor([[0.0, 0, 1], [1.0, 0, 0]])
    assert robust_accuracy(logits, [0, 1], found) == 0.5


def test_corruption_error_is_over_alexnets_kind_by_kind(imagenet, tmp_path):
    for kind, group in (("fog", "weather"), ("snow", "weather")):
        for severity in (1, 5):
            image(tmp_path / "c" / group / kind / str(severity) / WNIDS[0] / "x.JPEG")
    found = open_robust(f"imagenet-c:{tmp_path / 'c'}", open_labelled(f"imagenet:{imagenet}@train"))
    assert found.corruptions == ["fog", "fog", "snow", "snow"]
    right, wrong = [1.0, 0, 0], [0.0, 1, 0]
    error = robust_accuracy(torch.tensor([right, wrong, wrong, wrong]), [0, 1, 2, 3], found)
    assert error == pytest.approx((0.5 / ALEXNET["fog"] + 1 / ALEXNET["snow"]) / 2)
    assert len(ALEXNET) == 15


def test_what_does_not_fit_is_named(imagenet, tmp_path):
    train = open_labelled(f"imagenet:{imagenet}@train")
    image(tmp_path / "a" / "n09999999" / "x.jpg")
    with pytest.raises(DataError, match=r"Class n09999999 of .* is not among the training classes"):
        open_robust(f"imagenet-r:{tmp_path / 'a'}", train)
    with pytest.raises(DataError, match="There is no robustness set 'imagenet-z:/x'"):
        open_robust("imagenet-z:/x", train)
    with pytest.raises(DataError, match="does not lie in corruption/severity/wnid"):
        open_robust(f"imagenet-c:{tmp_path / 'a'}", train)
    with pytest.raises(DataError, match=r"real\.json cannot be read"):
        open_robust(f"real:{imagenet}", train)


def test_the_winning_probe_is_measured_on_them(imagenet, tmp_path):
    train = open_labelled(f"imagenet:{imagenet}@train")
    for number, wnid in enumerate(WNIDS[:2]):
        colour = [30, 30, 30]
        colour[number] = 220
        image(tmp_path / "a" / wnid / "x.jpg", tuple(colour))
    robust = [open_robust(f"imagenet-a:{tmp_path / 'a'}", train)]
    config = LinearConfig(steps=60, batch_size=8, rates=(1.0,), size=28, path="cached")
    data = LabelledData(train, train, "imagenet", robust)
    result = evaluate_linear(tiny_encoder(), data, config, workspace(tmp_path / "out"))
    assert result.metrics["robust/imagenet-a"] == 1.0
    assert isinstance(robust[0], RobustSet)
