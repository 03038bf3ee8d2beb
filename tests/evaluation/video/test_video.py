"""Video: J and F by hand, propagation equal to plain loops, and clips read as they lie on disk."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cutout_folder import draw_cutouts
from PIL import Image
from stand_ins import tiny_encoder, together, workspace

from dinov2_zoo.config.video import VideoConfig
from dinov2_zoo.errors import DataError
from dinov2_zoo.evaluation.video import protocol as video
from dinov2_zoo.evaluation.video.metrics import boundary, edges, j_and_f, region
from dinov2_zoo.evaluation.video.protocol import evaluate_video, follow, propagate
from dinov2_zoo.evaluation.video.readers import open_video


def square(top, left, side=20, size=(100, 120)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_region_by_hand():
    assert region(square(0, 0), square(0, 10)) == pytest.approx(200 / 600)
    assert region(square(0, 0), square(50, 50)) == 0.0
    empty = torch.zeros(5, 5, dtype=torch.bool)
    assert region(empty, empty) == 1.0 and region(empty, ~empty) == 0.0


def test_the_boundary_of_a_square_is_its_rim():
    # Inside at the right and the bottom, 20 + 20 - 1 pixels; outside at the left, top and corner, 20 + 20 + 1.
    assert edges(square(10, 10)).sum() == 39 + 41
    assert not edges(torch.ones(5, 5, dtype=torch.bool)).any()


def test_a_shift_within_the_tolerance_costs_no_boundary():
    # 0.008 of the diagonal of 100 x 120 is 1.25, so 2 pixels.
    assert boundary(square(40, 40), square(40, 40)) == 1.0
    assert boundary(square(40, 40), square(40, 42)) == 1.0
    assert boundary(square(40, 40), square(40, 48)) < 1.0
    assert boundary(square(10, 10), square(70, 80)) == 0.0
    assert boundary(square(10, 10), torch.zeros(100, 120, dtype=torch.bool)) == 0.0


def test_first_and_last_frame_do_not_count():
    truth = torch.stack([square(40, 40).long()] * 4)
    found = truth.clone()
    found[0] = found[-1] = 0
    assert j_and_f(found, truth) == [(1.0, 1.0)]
    found[1] = 0
    assert j_and_f(found, truth) == [(0.5, 0.5)]


def naive(context, target, radius, neighbours, temperature):
    """The protocol in plain loops."""
    _, height, width = target.shape
    result = torch.zeros(len(context[0][1]), height, width)
    for y in range(height):
        for x in range(width):
            votes = []
            for features, masks in context:
                for v in range(max(0, y - radius), min(height, y + radius + 1)):
                    for u in range(max(0, x - radius), min(width, x + radius + 1)):
                        votes.append((float(features[:, v, u] @ target[:, y, x]), masks[:, v, u]))
            votes = sorted(votes, key=lambda vote: -vote[0])[:neighbours]
            weights = torch.tensor([similarity for similarity, _ in votes]).div(temperature).softmax(0)
            result[:, y, x] = sum(w * mask for w, (_, mask) in zip(weights, votes, strict=True))
    return result


@pytest.mark.parametrize(("rows", "radius"), [(8, 2), (2, 1), (3, 12)])
def test_strips_equal_plain_loops(monkeypatch, rows, radius):
    monkeypatch.setattr(video, "ROWS", rows)
    draw = torch.Generator().manual_seed(0)
    frames = [F.normalize(torch.randn(6, 5, 7, generator=draw), dim=0) for _ in range(4)]
    masks = [torch.rand(3, 5, 7, generator=draw).softmax(0) for _ in range(3)]
    context = list(zip(frames[:3], masks, strict=True))
    options = {"radius": radius, "neighbours": 5, "temperature": 0.1}
    found = propagate(context, frames[3], **options)
    assert torch.allclose(found, naive(context, frames[3], *options.values()), atol=1e-5)


def moving(root, frames=6, kind="folder"):
    """A textured square that walks over a plain ground."""
    texture = torch.randint(0, 256, (28, 28, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    photos, masks = ("frames", "masks") if kind == "folder" else ("JPEGImages/480p", "Annotations/480p")
    for folder in (photos, masks):
        (root / folder / "walk").mkdir(parents=True)
    for time in range(frames):
        pixels = torch.full((84, 112, 3), 60, dtype=torch.uint8)
        left = 14 + 14 * (time // 2)
        pixels[28:56, left : left + 28] = texture
        mask = np.zeros((84, 112), dtype=np.uint8)
        mask[28:56, left : left + 28] = 1
        Image.fromarray(pixels.numpy()).save(root / photos / "walk" / f"{time:05d}.png")
        picture = Image.fromarray(mask)
        picture.putpalette([0, 0, 0, 200, 0, 0] + [9] * 762)
        picture.save(root / masks / "walk" / f"{time:05d}.png")
    return root


def test_a_moving_square_is_followed(tmp_path):
    data = open_video(f"folder:{moving(tmp_path)}")
    frames, truth = data.read(0)
    assert truth.unique().tolist() == [0, 1]  # indices of the palette, not colours

    class Pixels:
        """Tokens are the patches' own pixels: they tell texture from ground."""

        patch_size, device = 14, torch.device("cpu")

        def __call__(self, images):
            patches = F.unfold(images, 14, stride=14).transpose(1, 2)
            return type("T", (), {"patches": patches})()

    found = follow(Pixels(), frames, truth[0], VideoConfig(short_side=84))
    assert found.shape == truth.shape
    (j, f) = j_and_f(found, truth)[0]
    assert j > 0.8
    assert f > 0.5
    with_none = follow(Pixels(), frames, truth[0], VideoConfig(short_side=84, frames=0))
    assert with_none.shape == truth.shape


def test_davis_as_it_lies_on_disk(tmp_path):
    moving(tmp_path, kind="davis")
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("walk\n")
    data = open_video(f"davis:{tmp_path}")
    result = evaluate_video(tiny_encoder(), data, VideoConfig(short_side=84), workspace(tmp_path))
    assert result.metrics["objects"] == 1 and 0 <= result.metrics["j_and_f"] <= 1
    assert result.metrics["j_and_f"] == pytest.approx((result.metrics["j"] + result.metrics["f"]) / 2)


def test_composite_clips_move_and_are_always_the_same(tmp_path):
    data = open_video(f"composites:{draw_cutouts(tmp_path)}")
    frames, masks = data.read(3)
    assert len(data) == 8 and len(frames) == 12 and masks.shape == (12, 240, 320)
    assert masks.unique().tolist() == [0, 1, 2] and not torch.equal(masks[0], masks[-1])
    assert torch.equal(data.read(3)[1], masks)


def test_processes_share_the_clips(tmp_path):
    data = open_video(f"composites:{draw_cutouts(tmp_path)}")
    few = type(data)(data.names[:3], data.reader, data.identity)
    config = VideoConfig(short_side=56)
    alone = evaluate_video(tiny_encoder(), few, config, workspace(tmp_path))
    for found in together(lambda p: evaluate_video(tiny_encoder(), few, config, workspace(tmp_path, p))):
        assert found.metrics == pytest.approx(alone.metrics)


def test_what_does_not_fit_is_named(tmp_path):
    root = moving(tmp_path)
    Image.new("L", (5, 5)).save(root / "masks/walk/00002.png")
    with pytest.raises(DataError, match=r"00002\.png or its mask is not of the size"):
        open_video(f"folder:{root}").read(0)
    (root / "masks/walk/00002.png").unlink()
    with pytest.raises(DataError, match=r"There is no mask .*00002\.png"):
        open_video(f"folder:{root}")
    with pytest.raises(DataError, match=r"There is no .*val\.txt"):
        open_video(f"davis:{root}")
    with pytest.raises(DataError, match="There are no clips 'x:/y'"):
        open_video("x:/y")
