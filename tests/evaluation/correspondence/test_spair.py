"""SPair-71k: a small copy of its folder, PCK by hand, keypoints found where colours are equal."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import ColourEncoder, tiny_encoder, together, workspace

from dinov2_zoo.config.correspondence import CorrespondenceConfig
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.correspondence.keypoints import found_keypoints, keypoint_metrics
from dinov2_zoo.evaluation.correspondence.protocol import evaluate_correspondence, open_correspondence
from dinov2_zoo.evaluation.correspondence.spair import KeypointPair

QUICK = CorrespondenceConfig(size=280, workers=0, batch_size=3)


def annotation(root, name, category, images, points, *, split="test", viewpoint=0, **changed):
    """An annotation as the data set has it; the second photo is a mirror image, half as large."""
    (_, source, target) = name.split(":")[0].split("-")
    entry = {
        "filename": name,
        "category": category,
        "src_imname": f"{source}.jpg",
        "trg_imname": f"{target}.jpg",
        "src_imsize": [*images[source], 3],
        "trg_imsize": [*images[target], 3],
        "src_bndbox": [0, 0, 100, 100],
        "trg_bndbox": [10, 20, 110, 70],
        "src_kps": points,
        "trg_kps": [[images[target][0] - 1 - x // 2, y // 2] for x, y in points],
        "kps_ids": [str(number) for number in range(len(points))],
        "viewpoint_variation": viewpoint,
        "scale_variation": 0,
        "truncation": 0,
        "occlusion": 0,
        **changed,
    }
    file = root / "PairAnnotation" / split / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(entry))


def spair(root):
    """Two categories; colours say the place, mirrored in the photos called b."""
    images = {"a": (400, 300), "b": (200, 150)}
    for category in ("cat", "train"):
        for name, (width, height) in images.items():
            x = np.broadcast_to(np.linspace(0, 255, width), (height, width))
            x = x[:, ::-1] if name == "b" else x
            y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
            path = root / "JPEGImages" / category / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8)).save(path, quality=98)
        annotation(root, f"000001-a-b:{category}", category, images, [[40, 60], [350, 80], [200, 240]], viewpoint=1)
    annotation(root, "000002-a-b:cat", "cat", images, [[100, 100]])
    annotation(root, "000003-a-a:cat", "cat", images, [[100, 100]], split="val", trg_kps=[[100, 100]])
    return root


def test_the_folder_is_read_as_published(tmp_path):
    data = open_correspondence(f"spair:{spair(tmp_path / 'SPair-71k').parent}")
    assert len(data.pairs) == 3 and data.facts().images == {"pairs": 3, "images": 4}
    pair = data.pairs[0]
    assert (pair.category, pair.images, pair.extent, pair.viewpoint) == ("cat", ("a.jpg", "b.jpg"), 100, 1)
    assert pair.sizes == ((400, 300), (200, 150)) and pair.points[0].tolist() == [40.5, 60.5]
    assert pair.truths[0].tolist() == [179.5, 30.5]
    assert len(open_correspondence(f"spair:{tmp_path / 'SPair-71k'}@val").pairs) == 1


def test_keypoints_are_found_where_colours_are_equal(tmp_path):
    data = open_correspondence(f"spair:{spair(tmp_path)}")
    result = evaluate_correspondence(ColourEncoder(), data, QUICK, workspace(tmp_path))
    assert result.headline == "pck_point" and result.metrics["points"] == 7 and result.metrics["pairs"] == 3
    assert all(result.metrics[name] == 1 for name in result.metrics if name.startswith("pck"))
    assert result.metrics.keys() >= {"pck_image", "pck_class", "pck_viewpoint0", "pck_viewpoint1"}
    noise = evaluate_correspondence(ColourEncoder(noise=True), data, QUICK, workspace(tmp_path)).metrics
    assert noise["pck_point"] < 0.5
    one = CorrespondenceConfig(size=280, workers=0, pairs=1)
    assert evaluate_correspondence(ColourEncoder(), data, one, workspace(tmp_path)).metrics["pairs"] == 2


def test_two_processes_share_the_categories(tmp_path):
    data = open_correspondence(f"spair:{spair(tmp_path)}")
    alone = evaluate_correspondence(tiny_encoder(), data, QUICK, workspace(tmp_path)).metrics
    for found in together(lambda p: evaluate_correspondence(tiny_encoder(), data, QUICK, workspace(tmp_path, p))):
        assert found.metrics == pytest.approx(alone)


def test_pck_is_averaged_in_three_ways():
    def pair(category, viewpoint):
        return KeypointPair("", category, ("a", "b"), ((1, 1), (1, 1)), torch.empty(0), torch.empty(0), 1, viewpoint)

    pairs = [pair("cat", 0), pair("cat", 2), pair("dog", 0), pair("cow", 0)]
    metrics = keypoint_metrics(pairs, {0: [True] * 4, 1: [False, True], 2: [False] * 2})
    assert metrics["pck_point"] == 5 / 8 and metrics["pck_image"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert metrics["pck_class"] == pytest.approx((5 / 6 + 0) / 2)
    assert metrics["pck_viewpoint0"] == 4 / 6 and metrics["pck_viewpoint2"] == 0.5
    assert (metrics["pairs"], metrics["points"]) == (3, 8)


def test_what_is_found_is_the_centre_of_the_nearest_patch():
    grid = torch.nn.functional.normalize(torch.randn(16, 3, 5, generator=torch.Generator().manual_seed(0)), dim=0)
    centres = torch.tensor([[0.9, 0.5], [0.1, 5 / 6]])  # last column of the middle row, first of the last
    assert torch.allclose(found_keypoints(grid, grid, centres), centres)
    assert torch.allclose(found_keypoints(grid, grid.flip(2), centres), torch.tensor([[0.1, 0.5], [0.9, 5 / 6]]))


def test_the_threshold_is_a_tenth_of_the_boxs_longer_side(tmp_path):
    root = spair(tmp_path)
    for off, box, right in ((9, [0, 0, 100, 40], 1), (9, [0, 0, 60, 40], 0)):
        images = {"a": (400, 300), "b": (200, 150)}
        for file in (root / "PairAnnotation/test").iterdir():
            file.unlink()
        found = {"trg_kps": [[199 - 100 + off, 50]], "trg_bndbox": box}
        annotation(root, "000001-a-b:cat", "cat", images, [[200, 100]], **found)
        data = open_correspondence(f"spair:{root}")
        fine = CorrespondenceConfig(size=560, workers=0)  # patches of five pixels in the second photo
        metrics = evaluate_correspondence(ColourEncoder(), data, fine, workspace(tmp_path)).metrics
        assert metrics["pck_point"] == right, box


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(DataError, match=r"There are no pairs in .*PairAnnotation/test: name the folder of SPair-71k"):
        open_correspondence(f"spair:{tmp_path}")
    root = spair(tmp_path)
    file = root / "PairAnnotation/test/000001-a-b:cat.json"
    good = file.read_text()
    for wrong in ("nothing", "{}", good.replace('"trg_kps": [[', '"trg_kps": [["x", ')):
        file.write_text(wrong)
        with pytest.raises(DataError, match=r"000001-a-b:cat\.json is no annotation of a pair"):
            open_correspondence(f"spair:{root}")
    entry = json.loads(good)
    file.write_text(json.dumps({**entry, "trg_kps": entry["trg_kps"][1:]}))
    with pytest.raises(DataError, match="has 3 and 2 keypoints"):
        open_correspondence(f"spair:{root}")
    file.write_text(good)
    Image.new("RGB", (10, 10)).save(root / "JPEGImages/cat/a.jpg")
    with pytest.raises(DataError, match=r"400 x 300 pixels, .*a\.jpg 10 x 10"):
        evaluate_correspondence(ColourEncoder(), open_correspondence(f"spair:{root}"), QUICK, workspace(tmp_path))
    (root / "JPEGImages/cat/a.jpg").unlink()
    with pytest.raises(DataError, match=r"There is no .*cat/a\.jpg, which the pairs name"):
        open_correspondence(f"spair:{root}")
