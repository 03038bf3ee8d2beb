"""NAVI: a plate seen by several cameras, its depth and poses as published; points found where colours are equal."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import ColourEncoder, tiny_encoder, together, workspace

from dinov2_zoo.config.correspondence import CorrespondenceConfig
from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.evaluation.correspondence.navi import angle, open_navi, read_depth, rotation
from dinov2_zoo.evaluation.correspondence.protocol import evaluate_correspondence, open_correspondence
from dinov2_zoo.evaluation.correspondence.surfaces import read_surface

WIDTH, HEIGHT, FOCAL = 320, 240, 400.0
PLATE = 0.1
"""Half the side of the plate, metres; its colours say the place on it."""


def photo(folder, name, degrees, shift, distance):
    """The plate, turned in its plane and moved, millimetres; what the annotation says of it."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    seen = np.stack([(x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL], 2) * distance / 1000 - np.array(shift) / 1000
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    plate = seen @ np.array([[c, -s], [s, c]])  # back from the camera: the transpose of what the pose does
    hit = (np.abs(plate) < PLATE).all(2)
    place = np.clip((plate + PLATE) / (2 * PLATE), 0, 1) * 255
    pixels = np.where(hit[:, :, None], np.concatenate([place, np.zeros_like(place[:, :, :1])], 2), 128)
    disparity = np.where(hit, round(655_350 / distance), 0)
    for kind, values, end in (
        ("images", pixels.astype(np.uint8), "jpg"),
        ("depth", disparity.astype(np.uint16), "png"),
    ):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / kind / f"{name}.{end}", **({"quality": 98} if end == "jpg" else {}))
    turn = math.radians(degrees) / 2
    camera = {"q": [math.cos(turn), 0, 0, math.sin(turn)], "t": [*shift, distance], "focal_length": FOCAL}
    return {"object_id": "plate", "filename": f"{name}.jpg", "image_size": [HEIGHT, WIDTH], "camera": camera}


def navi(root, scene="wild_set"):
    folder = root / "plate" / scene
    poses = [(0, (0, 0), 500), (40, (30, -20), 600), (80, (-20, 10), 550), (-25, (0, 15), 520), (170, (0, 0), 500)]
    entries = [photo(folder, f"{number:03d}", *pose) for number, pose in enumerate(poses)]
    (folder / "annotations.json").write_text(json.dumps(entries))
    return root


QUICK = CorrespondenceConfig(size=140, matches=200, workers=0)


def test_the_folder_is_read_as_published(tmp_path):
    data = open_correspondence(f"navi:{navi(tmp_path / 'navi_v1').parent}")  # the folder above will do
    (first, partner), (fifth, other) = data.pairs  # every fourth photo asks
    assert (first.photo.name, fifth.photo.name) == ("000.jpg", "004.jpg") and first.size == (WIDTH, HEIGHT)
    assert partner.photo.name != "004.jpg"  # 170 degrees away
    assert 0 < angle(fifth, other) <= 120 and data.facts().images == {"pairs": 2}
    assert torch.allclose(
        first.pose, torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]]).double()
    )
    assert angle(first, first) == 0
    navi(tmp_path / "navi_v1", "multiview-00-canon")
    many = open_navi(f"{tmp_path / 'navi_v1'}@multiview")
    assert all(frame.photo.parts[-3] == "multiview-00-canon" for pair in many.pairs for frame in pair)


def test_rotations_by_hand():
    half = math.sqrt(0.5)
    quarter = rotation(torch.tensor([half, 0, 0, half], dtype=torch.float64))
    assert torch.allclose(quarter @ torch.tensor([1.0, 0, 0]).double(), torch.tensor([0.0, 1, 0]).double())
    any_turn = rotation(torch.tensor([0.3, -1.0, 0.2, 2.0], dtype=torch.float64))  # of any length
    assert torch.allclose(any_turn @ any_turn.T, torch.eye(3).double()) and any_turn.det() == pytest.approx(1)


def test_depth_is_in_metres_and_surfaces_are_where_the_camera_sees_them(tmp_path):
    (frame, _), _ = open_navi(str(navi(tmp_path))).pairs
    depth = read_depth(frame.depth)
    assert depth[120, 160].item() == pytest.approx(0.5, abs=1e-3) and depth[0, 0] == 0
    surface = read_surface(frame, 140)
    assert surface.image.shape == (3, 140, 140) and len(surface.points) == 35 * 35  # the plate fills the square
    place = torch.cat([surface.places * 2 * PLATE - PLATE, torch.full((len(surface.places), 1), 0.5)], 1)
    assert (surface.points - place).norm(dim=1).max() < 2e-3


def test_equal_colours_are_found_within_a_centimetre(tmp_path):
    data = open_correspondence(f"navi:{navi(tmp_path)}")
    result = evaluate_correspondence(ColourEncoder(7), data, QUICK, workspace(tmp_path))
    assert result.headline == "recall_2cm" and result.metrics["pairs"] == 2
    assert all(value == 1 for name, value in result.metrics.items() if name.startswith("recall"))
    angles = [angle(*pair) for pair in data.pairs]
    bins = {f"recall_2cm_{30 * int(found // 30)}" for found in angles}
    assert {name for name in result.metrics if name.startswith("recall_2cm_")} == bins
    noise = evaluate_correspondence(ColourEncoder(7, noise=True), data, QUICK, workspace(tmp_path)).metrics
    assert noise["recall_2cm"] < 0.15
    one = CorrespondenceConfig(size=140, pairs=1, workers=0)
    assert evaluate_correspondence(ColourEncoder(7), data, one, workspace(tmp_path)).metrics["pairs"] == 1


def test_a_wrong_pose_is_a_wrong_answer(tmp_path):
    root = navi(tmp_path)
    file = root / "plate/wild_set/annotations.json"
    entries = json.loads(file.read_text())
    for entry in entries:
        entry["camera"]["q"][3] *= -1
    file.write_text(json.dumps(entries))
    metrics = evaluate_correspondence(ColourEncoder(7), open_navi(str(root)), QUICK, workspace(tmp_path)).metrics
    assert metrics["recall_2cm"] < 0.5


def test_objects_at_the_border_and_depth_of_another_resolution(tmp_path):
    frame = photo(tmp_path / "plate/wild_set", "000", 0, (150, 40), 500)  # a quarter of the plate is out of sight
    entries = [frame, photo(tmp_path / "plate/wild_set", "001", 30, (0, 0), 500)]
    (tmp_path / "plate/wild_set/annotations.json").write_text(json.dumps(entries))
    (pair,) = open_navi(str(tmp_path)).pairs
    whole = read_surface(pair[0], 140)
    assert whole.places[:, 0].max() > 0.95  # the square has moved inwards: nothing of it lies beyond the photo
    path = pair[0].depth
    with Image.open(path) as file:
        file.resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.NEAREST).save(path)
    half = read_surface(pair[0], 140)
    assert half.image.shape == whole.image.shape == (3, 140, 140)
    assert half.points.mean(0).tolist() == pytest.approx(whole.points.mean(0).tolist(), abs=4e-3)
    metrics = evaluate_correspondence(ColourEncoder(7), open_navi(str(tmp_path)), QUICK, workspace(tmp_path)).metrics
    assert metrics["recall_2cm"] > 0.9


def test_two_processes_share_the_pairs(tmp_path):
    data = open_correspondence(f"navi:{navi(tmp_path)}")
    alone = evaluate_correspondence(tiny_encoder(), data, QUICK, workspace(tmp_path)).metrics
    for found in together(lambda p: evaluate_correspondence(tiny_encoder(), data, QUICK, workspace(tmp_path, p))):
        assert found.metrics == pytest.approx(alone)


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(DataError, match=r"There is no .*annotations\.json: name the folder of NAVI"):
        open_navi(str(tmp_path))
    root = navi(tmp_path)
    small = CorrespondenceConfig(size=9, workers=0)
    with pytest.raises(ConfigError, match=r"correspondence\.size is 9"):
        evaluate_correspondence(tiny_encoder(), open_navi(str(root)), small, workspace(tmp_path))
    scene = root / "plate/wild_set"
    Image.new("RGB", (100, 240)).save(scene / "images/000.jpg")
    with pytest.raises(DataError, match=r"000\.jpg has 100 x 240 pixels, its depth 320 x 240"):
        evaluate_correspondence(tiny_encoder(), open_navi(str(root)), QUICK, workspace(tmp_path))
    Image.new("L", (320, 240)).save(scene / "depth/000.png")
    with pytest.raises(DataError, match=r"000\.png shows no object"):
        read_depth(scene / "depth/000.png")
    (scene / "depth/000.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"000\.png cannot be read"):
        read_depth(scene / "depth/000.png")
    (scene / "depth/000.png").unlink()
    with pytest.raises(DataError, match=r"There is no .*depth/000\.png, which"):
        open_navi(str(root))
    (scene / "annotations.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"annotations\.json is no annotation of NAVI"):
        open_navi(str(root))
    one = tmp_path / "one/plate/wild_set"
    entry = photo(one, "000", 0, (0, 0), 500)
    (one / "annotations.json").write_text(json.dumps([entry]))
    with pytest.raises(DataError, match=r"No two photos of .* are at most 120 degrees apart"):
        open_navi(str(tmp_path / "one"))
