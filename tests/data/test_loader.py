"""The step alone decides the batch; bad files are replaced, reported and, when there are many, the end of the run."""

import dataclasses
import io
import resource
import tracemalloc

import pytest
import torch
from PIL import Image

from dinov2_zoo.config import CropConfig, LoaderConfig, MaskConfig
from dinov2_zoo.data.batch import Batch, Skipped
from dinov2_zoo.data.drop_path import DropPath, Share, draw_kept
from dinov2_zoo.data.loader import train_loader
from dinov2_zoo.data.order import epoch_order
from dinov2_zoo.data.positions import masked_positions, sampled_positions
from dinov2_zoo.data.skips import SkipLedger, guarded
from dinov2_zoo.data.sources import open_source
from dinov2_zoo.errors import ConfigError, DataError

CROPS = CropConfig(global_size=28, local_size=14, local_count=2)
MASKS = MaskConfig(exact=True)


class Pictures:
    """`count` images, each of its own colours; those in `bad` cannot be decoded."""

    labels = classes = None

    def __init__(self, count, bad=()):
        self.count, self.bad = count, frozenset(bad)

    def __len__(self):
        return self.count

    def name(self, index):
        return f"picture {index}"

    def read(self, index):
        if index in self.bad:
            return b"not an image"
        noise = torch.randint(0, 256, (12, 16, 3), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise.numpy()).save(buffer, "PNG")
        return buffer.getvalue()


def batches(source=None, batch_size=4, workers=0, crops=CROPS, seed=3, steps=5, **options):
    source, options = source or Pictures(10), {"masks": MASKS, "patch_size": 7} | options
    return list(train_loader(source, crops, LoaderConfig(batch_size, workers), seed=seed, steps=steps, **options))


def joined(parts):
    """One long batch of many."""
    return Batch(
        torch.cat([part.global_crops for part in parts], 1),
        torch.cat([part.local_crops for part in parts], 1),
        torch.cat([part.sample_ids for part in parts]),
        torch.cat([part.seeds for part in parts]),
        0,
        torch.cat([part.masks for part in parts], 1),
        [image for part in parts for image in part.skipped],
    )


def assert_same(a, b):
    assert torch.equal(a.sample_ids, b.sample_ids) and torch.equal(a.seeds, b.seeds) and a.skipped == b.skipped
    assert torch.equal(a.global_crops, b.global_crops) and torch.equal(a.local_crops, b.local_crops)
    assert torch.equal(a.masks, b.masks) and a.step == b.step


def test_shapes_and_counts():
    made = batches()
    assert len(made) == 5 and all(isinstance(batch, Batch) for batch in made)
    assert made[0].global_crops.shape == (2, 4, 3, 28, 28) and made[0].local_crops.shape == (2, 4, 3, 14, 14)
    assert made[0].global_crops.dtype == torch.float32 and made[0].sample_ids.dtype == torch.int64
    assert len(train_loader(Pictures(10), CROPS, LoaderConfig(4, 0), seed=0, steps=5, start_step=2, accumulate=2)) == 6
    none = batches(crops=CropConfig(global_size=28, local_size=14, local_count=0), steps=1)
    assert none[0].local_crops.shape == (0, 4, 3, 14, 14)


def test_half_of_a_steps_global_crops_hide_patches_and_batches_know_their_step():
    made = batches(accumulate=2)
    assert [batch.step for batch in made] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for first, second in zip(made[::2], made[1::2], strict=True):
        masks = torch.cat([first.masks, second.masks], 1)
        assert masks.shape == (2, 4, 16) and masks.any(-1).sum() == 4
        assert masks.sum(-1).max() <= 8
    assert batches(masks=None, steps=1)[0].masks is None


def test_what_a_loss_on_patches_looks_at_comes_with_the_batch():
    """Made by workers: on a GPU the training process would have to wait for the number of patches."""
    for batch in batches(workers=1):
        positions, weights = masked_positions(batch.masks)
        assert torch.equal(batch.positions, positions) and torch.equal(batch.weights, weights)
        assert torch.equal(batch.positions, batch.masks.flatten().nonzero()[:, 0])
    (some,) = batches(masks=None, patch_share=0.25, steps=1)
    assert torch.equal(some.positions, sampled_positions(some.seeds, 2, 16, 0.25)) and some.weights is None
    assert batches(masks=None, steps=1)[0].positions is None


def test_each_epoch_shows_every_image_once_in_another_order():
    ids = joined(batches(steps=5)).sample_ids  # 20 positions: two epochs of 10
    first, second = ids[:10], ids[10:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    assert first.tolist() == list(epoch_order(10, 3, 0)) and second.tolist() == list(epoch_order(10, 3, 1))
    assert not torch.equal(ids, joined(batches(seed=4)).sample_ids)


def test_an_image_gets_other_crops_in_another_epoch():
    all_of_it = joined(batches(steps=5))
    one, two = (all_of_it.sample_ids == 0).nonzero().flatten().tolist()
    assert not torch.equal(all_of_it.global_crops[:, one], all_of_it.global_crops[:, two])


@pytest.mark.parametrize("bad", [(), (2, 5)])
def test_same_pixels_whatever_the_workers(bad):
    source = Pictures(10, bad)
    for made, again in zip(batches(source), batches(source, workers=2), strict=True):
        assert_same(made, again)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_same_pixels_whatever_the_processes_and_micro_batches(accumulate, world_size):
    source = Pictures(10, bad=(7,))
    ranks = [batches(source, accumulate=accumulate, world_size=world_size, rank=r) for r in range(world_size)]
    assert all(len(made) == 5 * accumulate for made in ranks)
    assert all(len(batch.sample_ids) == 4 // accumulate // world_size for made in ranks for batch in made)
    steps = zip(*(zip(*[iter(made)] * accumulate, strict=True) for made in ranks), strict=True)
    in_turn = [batch for step in steps for share in step for batch in share]
    assert_same(joined(in_turn), joined(batches(source)))


@pytest.mark.parametrize("local", [0, 2])
def test_dropped_paths_are_those_of_the_whole_step(local):
    crops, drop_path = CropConfig(global_size=28, local_size=14, local_count=local), DropPath(0.4, depth=2, seed=3)
    options = {"crops": crops, "drop_path": drop_path, "batch_size": 20, "steps": 3}
    images = Pictures(30)
    for rank in range(2):
        made = batches(images, world_size=2, rank=rank, accumulate=5, **options)
        for number, batch in enumerate(made):
            place = Share(batch.step, rank * 10 + number % 5 * 2, 2, 20)
            expected = draw_kept(drop_path, [2, local] if local else [2], place)
            assert len(batch.drop_path) == len(batch.groups()) == len(expected)
            for kept, wanted in zip(batch.drop_path, expected, strict=True):
                assert torch.equal(kept.sequences, wanted.sequences) and torch.equal(kept.scale, wanted.scale)
    assert batches(steps=1)[0].drop_path is None


def test_same_pixels_after_a_restart():
    for made, again in zip(batches(accumulate=2)[6:], batches(accumulate=2, start_step=3), strict=True):
        assert_same(made, again)
    assert batches(start_step=5) == []


def test_the_global_generator_neither_decides_nor_moves():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    made = joined(batches())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert_same(made, joined(batches()))


def test_a_bad_file_is_replaced_by_the_next_of_the_order_and_reported():
    good, order = joined(batches(steps=2)), list(epoch_order(10, 3, 0))
    bad = {order[1], order[4], order[5]}  # the last two in a row
    made = joined(batches(Pictures(10, bad), steps=2))
    assert made.sample_ids.tolist() == [order[i] for i in (0, 2, 2, 3, 6, 6, 6, 7)]
    assert [image.sample_id for image in made.skipped] == [order[1], order[4], order[5], order[5]]
    assert made.skipped[0].name == f"picture {order[1]}" and "not an image" in made.skipped[0].reason
    for place in (0, 2, 3, 6, 7):  # the others have the pixels that they would have had, the stand-ins their own
        assert torch.equal(made.global_crops[:, place], good.global_crops[:, place])
    assert torch.equal(made.global_crops[:, 1], good.global_crops[:, 2])


def test_the_last_image_of_an_epoch_is_replaced_by_its_first():
    order = list(epoch_order(10, 3, 0))
    made = joined(batches(Pictures(10, {order[9]}), steps=3)).sample_ids
    assert made[9] == order[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_but_bad_files_ends_in_one_plain_sentence(workers):
    with pytest.raises(DataError) as caught:
        batches(Pictures(10, range(10)), workers=workers)
    message = str(caught.value)
    assert message.startswith("10 images in a row could not be decoded") and "Traceback" not in message


class Killed(Pictures):
    def read(self, index):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_explained(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # else torch waits for 10 seconds
    with pytest.raises(DataError, match=r"process was killed.*lower loader\.workers"):
        batches(Killed(10), workers=1)


def test_settings_that_cannot_work_are_refused_before_any_image_is_read():
    with pytest.raises(DataError, match=r"10 images are fewer than one batch of 11: lower loader\.batch_size"):
        train_loader(Pictures(10), CROPS, LoaderConfig(11, 0), seed=0, steps=1)
    with pytest.raises(ConfigError, match=r"10 does not divide among 2 processes x 2 micro-batches: use 8 or 12\."):
        train_loader(Pictures(10), CROPS, LoaderConfig(10, 0), seed=0, steps=1, accumulate=2, world_size=2)
    with pytest.raises(ConfigError, match=r"use 4\."):
        train_loader(Pictures(10), CROPS, LoaderConfig(2, 0), seed=0, steps=1, accumulate=4)
    assert len(batches(Pictures(10), batch_size=10, steps=1)) == 1


def test_batches_move_with_all_they_hold():
    batch = joined(batches(Pictures(10, {0}), steps=3))
    batch = dataclasses.replace(batch.hiding(batch.masks), targets=[torch.zeros(2, 12, 3, dtype=torch.int8)])
    moved = batch.to("meta")
    tensors = {name: value for name, value in vars(moved).items() if isinstance(value, torch.Tensor)}
    assert {"masks", "positions", "weights"} < tensors.keys() and moved.targets[0].is_meta
    # Seeds are for draws on the host.
    assert {name for name, tensor in tensors.items() if not tensor.is_meta} == {"seeds"}
    assert moved.skipped == batch.skipped != []


def test_the_ledger_counts_each_bad_file_once_and_stops_above_its_share():
    ledger = SkipLedger(100, 0.02)
    for index in (4, 4, 5, 4, 5):
        ledger.add([Skipped(index, f"file {index}", "Broken.")])
    ledger.add([])
    assert ledger.bad == 2
    with pytest.raises(
        DataError, match=r"3 of 100 .* file 6: Broken\. .*skipped\.jsonl.*raise loader\.max_bad_share\."
    ):
        ledger.add([Skipped(6, "file 6", "Broken.")])


def test_one_bad_file_of_thirty_is_more_than_one_in_a_hundred():
    with pytest.raises(DataError, match="1 of 30"):
        SkipLedger(30, 0.01).add([Skipped(0, "x", "Broken.")])
    SkipLedger(30, 1.0).add([Skipped(i, "x", "Broken.") for i in range(30)])


def test_a_guarded_stream_ends_after_the_batch_that_went_over():
    one = torch.zeros(2, 1, 3, 4, 4), torch.zeros(0, 1, 3, 2, 2), torch.zeros(1, dtype=torch.int64)
    stream = [Batch(*one, one[2], 0, None, [Skipped(i, "x", "Broken.")] if i else []) for i in range(5)]
    seen = []
    with pytest.raises(DataError, match="2 of 10"):
        for batch in guarded(stream, SkipLedger(10, 0.1)):
            seen.append(batch)
    assert seen == stream[:3]  # the consumer has had, and logged, the one that tells


def test_real_photos_from_packages(tmp_path):
    try:
        source = open_source("package:photos/train")
    except DataError as error:
        pytest.skip(str(error))
    batch = batches(source, batch_size=30, steps=1, workers=2)[0]
    assert sorted(batch.sample_ids.tolist()) == list(range(30)) and not batch.skipped
    assert batch.global_crops.mean().abs() < 1 and 0.3 < batch.global_crops.std() < 2


def peak_of_a_start(count, start_step):
    """Bytes that Python and numpy take at most for the first batches from a step on."""
    source = Pictures(count)
    epoch_order.cache_clear()
    tracemalloc.start()
    made = batches(source, steps=start_step + 2, start_step=start_step, masks=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [batch.step for batch in made] == [start_step, start_step + 1]
    return peak


def test_142_million_images_take_no_more_memory_than_ten_thousand_wherever_a_run_goes_on():
    batches(masks=None, steps=1)  # what is imported and kept at the first call
    small = peak_of_a_start(10_000, 0)
    # In the middle of the third epoch; torch's own memory is not traced, but a long order would be 1.1 GB to sort.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    large = peak_of_a_start(142_000_000, 2 * 142_000_000 // 4 + 17_000_001)
    assert large < 1.2 * small + 100_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; the order alone was 1,100,000
