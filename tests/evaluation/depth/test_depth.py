"""Depth as a task: metrics by hand, masks counted, readers on copies of real layouts, and a whole small evaluation."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import tiny_encoder, together, workspace
from stopped_training import stopped_after

from dinov2_zoo.config.depth import DepthConfig
from dinov2_zoo.errors import ConfigError, DataError
from dinov2_zoo.evaluation.depth.augment import DepthAugmentation
from dinov2_zoo.evaluation.depth.bins_head import BinsHead
from dinov2_zoo.evaluation.depth.metrics import depth_metrics, evaluated_pixels, mean_over_images
from dinov2_zoo.evaluation.depth.protocol import depth_head, evaluate_depth, predict_depth, taps
from dinov2_zoo.evaluation.depth.readers import kitti_box, open_depth


def test_metrics_by_hand():
    truth = torch.tensor([[1.0, 2.0, 4.0, 0.0]])  # the last one is unknown
    found = torch.tensor([[1.2, 2.0, 2.0, 9.0]])
    metrics = depth_metrics(found, truth, 0.001, 10, "none")
    assert metrics["a1"] == pytest.approx(2 / 3) and metrics["a3"] == pytest.approx(2 / 3)  # 1.2, 1, 2
    assert metrics["abs_rel"] == pytest.approx((0.2 + 0 + 0.5) / 3)
    assert metrics["sq_rel"] == pytest.approx((0.04 + 0 + 1) / 3)
    assert metrics["rmse"] == pytest.approx(math.sqrt((0.04 + 0 + 4) / 3))
    logs = [math.log(1.2), 0, math.log(0.5)]
    assert metrics["rmse_log"] == pytest.approx(math.sqrt(sum(x * x for x in logs) / 3))
    assert metrics["log10"] == pytest.approx((math.log10(1.2) + math.log10(2)) / 3)
    assert metrics["silog"] == pytest.approx(100 * math.sqrt(sum(x * x for x in logs) / 3 - (sum(logs) / 3) ** 2))


def test_predictions_are_cut_to_the_range_and_made_finite():
    truth = torch.full((1, 3), 5.0)
    metrics = depth_metrics(torch.tensor([[math.inf, math.nan, 99.0]]), truth, 1.0, 10, "none")
    assert metrics["rmse"] == pytest.approx(math.sqrt((25 + 16 + 25) / 3))


def test_rmse_is_the_mean_over_images_not_over_pixels():
    images = [{"rmse": 1.0}, {"rmse": 3.0}, {"rmse": math.nan}]
    assert mean_over_images(images) == {"rmse": 2.0}


def test_masks_cover_what_the_protocols_say():
    assert evaluated_pixels(480, 640, "eigen").sum() == 426 * 560
    garg = evaluated_pixels(352, 1216, "garg")
    rows, columns = garg.any(1).nonzero(), garg.any(0).nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (143, 348, 43, 1171)
    assert evaluated_pixels(5, 7, "none").all()


def test_blocks_are_those_of_the_paper():
    assert taps(12, "lin4") == [2, 5, 8, 11] and taps(24, "dpt") == [4, 11, 17, 23] and taps(40, "lin1") == [39]
    assert taps(4, "lin4") == [0, 1, 2, 3] and taps(6, "dpt") == [0, 2, 3, 5]
    with pytest.raises(ConfigError, match="use depth:lin1"):
        taps(3, "lin4")
    with pytest.raises(ConfigError, match="multiple of 8"):
        depth_head("dpt", 36, 0.001, 10)


def picture(path, size=(60, 40), shade=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 80, 60)).save(path)


def depth_png(path, metres, scale, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((size[1], size[0]), round(metres * scale), dtype=np.uint16)
    values[0, 0] = 0
    Image.fromarray(values).save(path)


def test_nyu_as_it_lies_on_disk(tmp_path):
    for part, folder in (("train", "bathroom_0001"), ("test", "kitchen")):
        picture(tmp_path / folder / "rgb_00001.jpg", (640, 480))
        depth_png(tmp_path / folder / "sync_depth_00001.png", 2.5, 1000, (640, 480))
        line = f"/{folder}/rgb_00001.jpg /{folder}/sync_depth_00001.png 518.8579\n"
        (tmp_path / f"nyu_{part}.txt").write_text(line)
    data = open_depth(f"nyu:{tmp_path}")
    photo, depth = data.train_images().read(0)
    assert photo.size == (565, 427) and depth.shape == (427, 565) and depth.max() == 2.5
    assert data.test_images().read(0)[1][0, 0] == 0 and data.mask == "eigen" and data.max_depth == 10


def test_kitti_as_it_lies_on_disk(tmp_path):
    drive = "2011_09_26/2011_09_26_drive_0002_sync/image_02/data"
    truth = "2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02"
    for number in (69, 70):
        picture(tmp_path / "input" / drive / f"{number:010d}.png", (1242, 375))
    depth_png(tmp_path / "gt_depth" / truth / "0000000069.png", 20, 256, (1242, 375))
    lines = f"{drive}/0000000069.png {truth}/0000000069.png 721.5377\n{drive}/0000000070.png None 721.5377\n"
    for part in ("train", "test"):
        (tmp_path / f"kitti_eigen_{part}.txt").write_text(lines)
    data = open_depth(f"kitti:{tmp_path}")
    assert len(data.train_images()) == 1
    photo, depth = data.test_images().read(0)
    assert photo.size == (1216, 352) and depth.max() == 20 and data.mask == "garg"
    assert kitti_box(1242, 375) == (13, 23, 1229, 375)


def test_sunrgbd_is_for_tests_only(tmp_path):
    picture(tmp_path / "a.jpg", (730, 530))
    depth_png(tmp_path / "a.png", 3, 8000, (730, 530))
    (tmp_path / "sunrgbd_test.txt").write_text("a.jpg a.png\n")
    data = open_depth(f"sunrgbd:{tmp_path}")
    photo, depth = data.test_images().read(0)
    assert photo.size == (640, 480) and depth.shape == (480, 640)
    with pytest.raises(DataError, match="for tests only"):
        data.train_images()


def folder(root, count=2, metres=4.0, scale=1000, size=(60, 40)):
    for part in ("train", "test"):
        for number in range(count):
            picture(root / part / "images" / f"{number}.jpg", size, 40 * number)
            depth_png(root / part / "depth" / f"{number}.png", metres, scale, size)
    return root


def test_a_folder_of_ones_own(tmp_path):
    data = open_depth(f"folder:{folder(tmp_path)}")
    assert len(data.train_images()) == 2 and data.test_images().read(1)[1].max() == 4
    np.save(tmp_path / "test" / "depth" / "0.npy", np.full((40, 60), 7.0))
    assert open_depth(f"folder:{tmp_path}").test_images().read(0)[1].max() == 7


def test_a_wrong_unit_is_noticed(tmp_path):
    folder(tmp_path, scale=1)  # metres as whole numbers
    with pytest.raises(DataError, match=r"median depth .* 0\.004 m, .*check the unit.*scale=1000"):
        open_depth(f"folder:{tmp_path}")
    assert open_depth(f"folder:{tmp_path}?scale=1").test_images().read(0)[1].max() == 4


def test_what_does_not_fit_is_named(tmp_path):
    root = folder(tmp_path)
    depth_png(root / "train" / "depth" / "1.png", 4, 1000, (60, 41))
    with pytest.raises(DataError, match=r"1\.png has 60 x 41 pixels, .*1\.jpg 60 x 40"):
        open_depth(f"folder:{root}")
    (root / "train" / "depth" / "1.png").unlink()
    with pytest.raises(DataError, match=r"There is no depth .*1\.png or \.npy"):
        open_depth(f"folder:{root}")
    with pytest.raises(DataError, match="has no option unit"):
        open_depth(f"folder:{root}?unit=3")
    with pytest.raises(DataError, match=r"There is no .*nyu_train\.txt"):
        open_depth(f"nyu:{root}")
    with pytest.raises(DataError, match="There are no depth data 'x:/y'"):
        open_depth("x:/y")


def test_the_stereo_pair_gives_metres_and_shares_no_pixel():
    data = open_depth("package:motorcycle")
    train, test = data.train_images(), data.test_images()
    assert (len(train), len(test)) == (12, 6)
    assert max(train._corners)[1] + 224 < min(left for _, left in test._corners)
    known = torch.cat([depth[depth > 0] for _, depth in (train.read(i) for i in range(12))])
    assert known.min() > 2.0 and known.max() < 5.1


def test_augmentation_moves_photo_and_depth_together():
    # The photo's red is the depth: after any turn, flip and cut they still agree where depth is known.
    values = torch.arange(40 * 60).view(40, 60) % 200 + 20
    photo = Image.fromarray(torch.stack([values] * 3, 2).to(torch.uint8).numpy())
    augment = DepthAugmentation((28, 42), (1.0, 1.0))
    agreements = []
    for seed in range(12):
        image, depth = augment(photo, values.float(), torch.Generator().manual_seed(seed))
        assert image.shape == (3, 28, 42) and depth.shape == (28, 42)
        red = image[0] * 0.229 * 255 + 0.485 * 255
        both = torch.stack([red[depth > 0], depth[depth > 0]])
        agreements.append(torch.corrcoef(both)[0, 1].item())
    assert min(agreements) > 0.6 and max(agreements) > 0.999
    image, depth = augment(photo.crop((0, 0, 20, 20)), values[:20, :20].float(), torch.Generator().manual_seed(0))
    assert image.shape == (3, 28, 42) and (depth[20:] == 0).all()


def test_padding_is_cut_off_and_the_mirror_image_mirrors():
    encoder = tiny_encoder()
    torch.manual_seed(0)
    head = BinsHead(encoder.dim, 1, 0.001, 10)
    images = torch.randn(1, 3, 30, 45)
    with torch.no_grad():
        depth = predict_depth(encoder, head, [3], images)
        stretched = predict_depth(encoder, head, [3], images, reference=True)
        flipped = predict_depth(encoder, head, [3], images, flip=True)
        of_mirror = predict_depth(encoder, head, [3], images.flip(3), flip=True)
        padded = torch.nn.functional.pad(images, (5, 6, 6, 6))
        whole = predict_depth(encoder, head, [3], padded)
    assert depth.shape == (1, 30, 45)
    assert torch.allclose(whole[:, 6:36, 5:50], depth, atol=1e-5)
    assert not torch.allclose(stretched, depth, atol=1e-3)
    assert torch.allclose(flipped, of_mirror.flip(2), atol=1e-5)


QUICK = DepthConfig(steps=12, batch_size=2, crop=(56, 56), lr=1e-2, mean_only_steps=2, save_every=4, workers=1)


def evaluate(config, out, processes=None, head="lin4", data=None, say=lambda line: None):
    data = data or open_depth("package:motorcycle")
    return evaluate_depth(tiny_encoder(), data, config, workspace(out, processes, say), head=head)


@pytest.mark.parametrize("head", ["lin1", "lin4"])
def test_a_head_learns_and_every_figure_is_finite(tmp_path, head):
    config = {**vars(QUICK), "batch_size": 16}  # losses of two crops differ by the crops
    said, untrained_said = [], []
    result = evaluate(DepthConfig(**config), tmp_path, head=head, say=said.append)
    losses = [float(line.rpartition(" ")[2]) for line in said]
    assert losses[-1] < losses[2]
    assert all(math.isfinite(value) for value in result.metrics.values()) and result.headline == "rmse"
    untrained = evaluate(DepthConfig(**{**config, "lr": 1e-12}), tmp_path, head=head, say=untrained_said.append)
    assert result.metrics["rmse"] < untrained.metrics["rmse"]
    # On the same crops; the first full loss, of the third step, is already one of a trained head.
    pairs = zip(losses, (float(line.rpartition(" ")[2]) for line in untrained_said), strict=True)
    assert all(mine < theirs for mine, theirs in list(pairs)[3:])


def test_dpt_runs_as_a_task(tmp_path):
    config = DepthConfig(**{**vars(QUICK), "steps": 2, "crop": (28, 28), "flip_test": False})
    data = open_depth(f"folder:{folder(tmp_path / 'data', size=(56, 42))}")
    assert math.isfinite(evaluate(config, tmp_path, head="dpt", data=data).metrics["abs_rel"])


def test_a_stopped_head_goes_on_and_two_processes_equal_one(tmp_path, monkeypatch):
    whole = evaluate(QUICK, tmp_path / "whole")
    with stopped_after(7, monkeypatch):
        evaluate(QUICK, tmp_path / "stopped")
    assert evaluate(QUICK, tmp_path / "stopped").metrics == whole.metrics
    # The loss of half a batch has a variance of its own, so training differs; shared tests of one head do not.
    for found in together(lambda p: evaluate(QUICK, tmp_path / "whole", p)):
        assert found.metrics == pytest.approx(whole.metrics, rel=1e-6)
