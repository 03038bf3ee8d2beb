"""Segmentation: pooled IoU by hand, windows, scales, masks that do not fit, and a whole small evaluation."""

import numpy as np
import pytest
import torch
from cutout_folder import draw_cutouts
from PIL import Image
from stand_ins import tiny_encoder, together, workspace
from stopped_training import stopped_after
from torch import nn

from dinov2_zoo.config.segmentation import SegmentationConfig
from dinov2_zoo.errors import ConfigError, DataError, TrainingError
from dinov2_zoo.evaluation.dense.synced_norm import SyncedNorm
from dinov2_zoo.evaluation.depth.official import load_official
from dinov2_zoo.evaluation.segmentation.augment import SegmentationAugmentation, distorted, scaled_size
from dinov2_zoo.evaluation.segmentation.head import LinearHead, linear_head
from dinov2_zoo.evaluation.segmentation.metrics import Confusion
from dinov2_zoo.evaluation.segmentation.protocol import (
    Viewing,
    evaluate_segmentation,
    pixel_logits,
    segment,
    token_maps,
)
from dinov2_zoo.evaluation.segmentation.readers import CITYSCAPES, open_segmentation
from dinov2_zoo.evaluation.segmentation.slide import positions, slide
from dinov2_zoo.training.distributed import SingleProcess


def counted(*pairs, classes=3):
    confusion = Confusion(classes)
    for found, truth in pairs:
        confusion.add(torch.tensor([found]), torch.tensor([truth]))
    return confusion.metrics()


def test_iou_is_pooled_over_images_by_hand():
    # Class 0: hits 1 + 0, unions 2 + 1: 1/3. Class 1: hits 1 + 3, unions 2 + 4: 4/6. Class 2 occurs nowhere.
    metrics = counted(([0, 1, 1], [0, 0, 1]), ([0, 1, 1, 1, 1], [1, 1, 1, 1, 255]))
    assert metrics["miou"] == pytest.approx((1 / 3 + 4 / 6) / 2)
    assert metrics["accuracy"] == pytest.approx(5 / 7)
    assert metrics["mean_accuracy"] == pytest.approx((1 / 2 + 4 / 5) / 2)
    per_image = (((1 / 2 + 1 / 2) / 2) + ((0 + 3 / 4) / 2)) / 2
    assert metrics["miou"] != pytest.approx(per_image)


def test_a_class_only_predicted_counts_as_nothing_found():
    assert counted(([0, 2], [0, 0]))["miou"] == pytest.approx((1 / 2 + 0) / 2)


def test_windows_cover_the_image_and_the_last_ends_with_it():
    assert positions(512, 512, 341) == [0]
    assert positions(1000, 512, 341) == [0, 341, 488]
    assert positions(853, 512, 341) == [0, 341]


def test_sliding_over_a_function_of_the_pixel_changes_nothing():
    image = torch.randn(3, 37, 50)
    whole = slide(lambda x: x * 2, image, window=60, stride=40, batch=4)
    windows = slide(lambda x: x * 2, image, window=14, stride=9, batch=4)
    assert torch.allclose(whole, 2 * image) and torch.allclose(windows, 2 * image, atol=1e-6)


def test_overlaps_are_averaged():
    # Each window says its number, in order.
    seen = []

    def number(windows):
        seen.append(len(windows))
        first = sum(seen) - len(windows)
        return torch.stack([torch.full((1, *w.shape[1:]), float(first + i)) for i, w in enumerate(windows)])

    found = slide(number, torch.zeros(3, 4, 10), window=6, stride=4, batch=1)
    assert found[0, 0].tolist() == [0, 0, 0, 0, 0.5, 0.5, 1, 1, 1, 1]


def test_one_process_equals_batch_norm():
    ours, theirs = SyncedNorm(5, SingleProcess()), nn.BatchNorm2d(5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for seed in range(3):
        x = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(seed)) * 3 + 1
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    for name, tensor in theirs.state_dict().items():
        if "running" in name:
            assert torch.allclose(ours.state_dict()[name], tensor, atol=1e-5), name
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)


def test_two_processes_have_the_statistics_of_one():
    x = torch.randn(4, 5, 3, 3) * 2 + 1
    whole = SyncedNorm(5, SingleProcess())
    expected = whole(x)

    def half(processes):
        norm = SyncedNorm(5, processes)
        return norm(x[2 * processes.rank : 2 * processes.rank + 2]).detach(), norm.running_var.clone()

    found = together(half)
    assert torch.allclose(torch.cat([part for part, _ in found]), expected, atol=1e-5)
    assert torch.allclose(found[1][1], whole.running_var, atol=1e-6)


def test_at_test_time_the_norm_is_part_of_the_convolution():
    head = linear_head(8, 3, SingleProcess())
    for seed in range(5):
        head(torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(seed)) * 3 + 1)
    nn.init.normal_(head.norm.weight)
    nn.init.normal_(head.norm.bias)
    head.eval()
    x = torch.randn(2, 8, 4, 4)
    assert torch.allclose(head(x), head.conv(head.norm(x)), atol=1e-5)


def test_official_heads_load(tmp_path):
    state = {
        f"decode_head.{name.replace('norm.', 'bn.').replace('conv.', 'conv_seg.')}": tensor + 1
        for name, tensor in LinearHead(8, 3, SingleProcess()).state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "head.pth")
    head = LinearHead(8, 3, SingleProcess())
    load_official(head, tmp_path / "head.pth")
    assert torch.equal(head.conv.weight, state["decode_head.conv_seg.weight"])
    assert torch.equal(head.norm.running_var, state["decode_head.bn.running_var"])


def test_filling_up_to_patches_does_not_shift_the_scores():
    encoder, head = tiny_encoder(), linear_head(32, 3, SingleProcess()).eval()
    images = torch.randn(1, 3, 30, 45)
    scores = pixel_logits(encoder, head, images, 1)
    assert scores.shape == (1, 3, 30, 45)
    whole = pixel_logits(encoder, head, nn.functional.pad(images, (5, 6, 6, 6)), 1)
    assert torch.allclose(scores, whole[:, :, 6:36, 5:50], atol=1e-5)


def test_the_head_reads_patch_tokens_behind_the_final_norm():
    encoder, images = tiny_encoder(), torch.randn(2, 3, 28, 42)
    last = encoder(images).patches.transpose(1, 2).unflatten(2, (2, 3))  # the model's own output is normed
    assert torch.allclose(token_maps(encoder, images, 1), last, atol=1e-5)
    assert torch.allclose(token_maps(encoder, images, 3)[:, -32:], last, atol=1e-5)


def test_mirror_images_make_the_result_mirror_too():
    encoder, head = tiny_encoder(), linear_head(4 * 32, 3, SingleProcess())
    nn.init.normal_(head.conv.weight)
    for seed in range(30):  # the norm's statistics
        images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(seed))
        head(token_maps(encoder, images, 4))
    head.eval()
    photo = Image.fromarray(torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8).numpy())

    def found(image):
        return segment(encoder, head, image, 4, Viewing(42, window=28, stride=14, ratios=(1.0, 1.5), flip=True))

    mirrored = found(photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).flip(1)
    assert (found(photo) == mirrored).float().mean() > 0.99 and found(photo).unique().numel() > 1


def test_scaled_sizes_keep_the_ratio_and_both_bounds():
    assert scaled_size(640, 480, 512) == [512, 683]
    assert scaled_size(4000, 500, 512) == [256, 2048]  # the long side is the bound


def test_augmentation_moves_photo_and_mask_together():
    mask = torch.zeros(60, 80, dtype=torch.int64)
    mask[10:40, 20:60] = 1
    photo = Image.fromarray((mask[:, :, None] * 200).expand(-1, -1, 3).to(torch.uint8).numpy())
    for seed in range(8):
        augment = SegmentationAugmentation(60, (0.5, 2.0), 56)
        image, cut = augment(photo, mask, torch.Generator().manual_seed(seed))
        assert image.shape == (3, 56, 56) and cut.shape == (56, 56)
        inside = cut != 255
        bright = image.mean(0)
        if (cut == 1).any() and (cut == 0).any():
            assert bright[cut == 1].mean() > bright[cut == 0].mean() + 0.5
        assert inside.any()


def test_crops_avoid_a_single_class():
    mask = torch.zeros(100, 100, dtype=torch.int64)
    mask[:, 60:] = 1
    augment = SegmentationAugmentation(100, (1.0, 1.0), 40)
    shares = []
    for seed in range(20):
        cut = augment(Image.new("RGB", (100, 100)), mask, torch.Generator().manual_seed(seed))[1]
        shares.append(cut.float().mean().item())
    assert sum(0.25 <= share <= 0.75 for share in shares) >= 18  # by chance alone about a third


def test_distortion_is_off_on_and_bounded():
    pixels = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    off = [0.9, 0, 0.1, 0.9, 0, 0.9, 0, 0.9, 0, 0]
    assert torch.equal(distorted(pixels, off), pixels)
    brighter = [0.1, 1.0, *off[2:]]
    assert torch.equal(distorted(pixels, brighter), pixels + 32)


def image_and_mask(photo, mask, numbers, size=(12, 8), mode="L"):
    for path in (photo, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 80, 70)).save(photo)
    values = np.resize(np.array(numbers, dtype=np.uint8), (size[1], size[0]))
    picture = Image.fromarray(values)
    if mode == "P":
        picture = picture.convert("P")
        picture.putpalette([value for index in range(256) for value in (255 - index, index, 7)])
        picture = Image.fromarray(values)
        picture.putpalette([value for index in range(256) for value in (255 - index, index, 7)])
    picture.save(mask)


def test_ade20k_as_it_lies_on_disk(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for part in ("training", "validation"):
        image_and_mask(root / f"images/{part}/ADE_1.jpg", root / f"annotations/{part}/ADE_1.png", [0, 1, 150])
    data = open_segmentation(f"ade20k:{tmp_path}")
    assert data.classes == 150 and data.test.read(0)[1].unique().tolist() == [0, 149, 255]


def test_voc_as_it_lies_on_disk_reads_indices_not_colours(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for part, name in (("train", "2007_1"), ("val", "2007_2")):
        (lists / f"{part}.txt").write_text(f"{name}\n")
        pair = (root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png")
        image_and_mask(*pair, [0, 20, 255], mode="P")
    data = open_segmentation(f"voc:{tmp_path}")
    assert data.test.read(0)[1].unique().tolist() == [0, 20, 255] and data.classes == 21
    (lists / "trainaug.txt").write_text("2007_1\n2007_3\n")
    with pytest.raises(DataError, match=r"There is no .*SegmentationClassAug/2007_1\.png"):
        open_segmentation(f"voc:{tmp_path}")


def test_cityscapes_as_it_lies_on_disk(tmp_path):
    for part in ("train", "val"):
        stem = "aachen/aachen_000000_000019"
        photo = tmp_path / f"leftImg8bit/{part}/{stem}_leftImg8bit.png"
        image_and_mask(photo, tmp_path / f"gtFine/{part}/{stem}_gtFine_labelIds.png", [0, 7, 33, 9])
    data = open_segmentation(f"cityscapes:{tmp_path}")
    assert data.test.read(0)[1].unique().tolist() == [0, 18, 255] and len(CITYSCAPES) == 19


def folder(root, numbers=(0, 1, 2, 255)):
    for part in ("train", "test"):
        for number in range(2):
            image_and_mask(root / part / f"images/{number}.jpg", root / part / f"masks/{number}.png", numbers)
    return root


def test_a_folder_of_ones_own(tmp_path):
    assert open_segmentation(f"folder:{folder(tmp_path)}").classes == 3
    (tmp_path / "classes.txt").write_text("ground\na\nb\nc\n")
    assert open_segmentation(f"folder:{tmp_path}").classes == 4


def test_masks_that_do_not_fit_are_named(tmp_path):
    root = folder(tmp_path)
    image_and_mask(root / "test/images/0.jpg", root / "test/masks/0.png", [0, 9])
    with pytest.raises(DataError, match=r"0\.png holds the number 9, which is no class"):
        open_segmentation(f"folder:{root}").test.read(0)
    Image.new("L", (12, 9)).save(root / "test/masks/0.png")
    with pytest.raises(DataError, match=r"0\.png has 12 x 9 pixels, .*0\.jpg 12 x 8"):
        open_segmentation(f"folder:{root}").test.read(0)
    Image.new("RGB", (12, 8)).save(root / "test/masks/0.png")
    with pytest.raises(DataError, match=r"0\.png holds colours"):
        open_segmentation(f"folder:{root}").test.read(0)
    (root / "test/masks/0.png").unlink()
    with pytest.raises(DataError, match=r"There is no mask .*0\.png"):
        open_segmentation(f"folder:{root}")
    with pytest.raises(DataError, match="There are no masks 'x:/y'"):
        open_segmentation("x:/y")


def test_composites_are_real_scenes_with_true_masks(tmp_path):
    data = open_segmentation(f"composites:{draw_cutouts(tmp_path)}")
    assert data.classes == 4 and (len(data.train), len(data.test)) == (240, 30)
    seen = set()
    for index in range(12):
        photo, mask = data.train.read(index)
        again = data.train.read(index)[1]
        assert torch.equal(mask, again) and tuple(mask.shape) == (photo.height, photo.width)
        pixels = torch.from_numpy(np.array(photo)).float()
        for number, channel in ((1, 0), (2, 1), (3, 2)):  # disks are red, squares green, triangles blue
            part = pixels[mask == number]
            if len(part) > 50:
                assert part.mean(0).argmax() == channel
                seen.add(number)
    assert seen == {1, 2, 3}
    train, test = (
        {path.name for path, _ in (data.train._cutouts.files[i] for i in part._chosen) if path.parent.name == "disks"}
        for part in (data.train, data.test)
    )
    assert train and test and not train & test


def test_only_transparent_images_are_cutouts(tmp_path):
    root = draw_cutouts(tmp_path)
    for number in range(4):
        (root / "squares" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"No PNG in .*squares has a transparent ground"):
        open_segmentation(f"composites:{root}")


QUICK = SegmentationConfig(
    steps=30, warmup_steps=2, lr=0.02, batch_size=2, short_side=70, crop=70, ratios=(1.0, 1.5), save_every=4, workers=1
)


def evaluate(root, out, head="linear", config=QUICK, processes=None, say=lambda line: None):
    data = open_segmentation(f"composites:{root}")
    data.test._count = 4
    return evaluate_segmentation(tiny_encoder(), data, config, workspace(out, processes, say), head=head)


@pytest.mark.parametrize("head", ["linear", "ms"])
def test_a_head_learns_and_metrics_are_shares(tmp_path, head):
    root, said = draw_cutouts(tmp_path / "cutouts"), []
    result = evaluate(root, tmp_path / "out", head, say=said.append)
    losses = [float(line.rpartition(" ")[2]) for line in said]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert result.headline == "miou" and all(0 <= value <= 1 for value in result.metrics.values())
    assert result.protocol["stride"] == (35 if head == "ms" else 46)
    untrained = evaluate(root, tmp_path / "out", head, SegmentationConfig(**{**vars(QUICK), "lr": 1e-12}))
    assert result.metrics["accuracy"] > untrained.metrics["accuracy"]


def test_a_stopped_head_goes_on_and_two_processes_equal_one(tmp_path, monkeypatch):
    root = draw_cutouts(tmp_path / "cutouts")
    whole = evaluate(root, tmp_path / "whole")
    with stopped_after(7, monkeypatch):
        evaluate(root, tmp_path / "stopped")
    assert evaluate(root, tmp_path / "stopped").metrics == whole.metrics
    for found in together(lambda p: evaluate(root, tmp_path / "whole", processes=p)):
        assert found.metrics == pytest.approx(whole.metrics)


def test_a_model_of_three_blocks_has_no_ms(tmp_path):
    data = open_segmentation(f"folder:{folder(tmp_path)}")
    with pytest.raises(ConfigError, match=r"3 blocks, segmentation:ms reads 4"):
        evaluate_segmentation(tiny_encoder(depth=3), data, QUICK, workspace(tmp_path), head="ms")


def test_a_rate_that_explodes_ends_with_the_remedy(tmp_path):
    root = draw_cutouts(tmp_path / "cutouts")
    with pytest.raises(TrainingError, match="lower its rate"):
        evaluate(root, tmp_path / "out", config=SegmentationConfig(**{**vars(QUICK), "lr": 1e38}))
