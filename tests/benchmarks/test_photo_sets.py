"""The photo sets of the benchmarks: what is one scene, what is kept out, and what a tile is."""

import importlib.util
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FILE = Path(__file__).parents[2] / "benchmarks/photo_sets.py"
spec = importlib.util.spec_from_file_location("photo_sets", FILE)
assert spec is not None and spec.loader is not None
photo_sets = importlib.util.module_from_spec(spec)
spec.loader.exec_module(photo_sets)


def photo(seed, size=(640, 480)):
    coarse = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def test_a_photo_of_another_size_is_the_same_scene_and_another_photo_is_not():
    images = {"x/one.jpg": photo(0), "y/two.jpg": photo(1), "z/one-small.jpg": photo(0).resize((200, 150))}
    assert photo_sets.scenes(images) == [["x/one.jpg", "z/one-small.jpg"], ["y/two.jpg"]]


def test_photos_with_the_name_of_one_scene_stay_together():
    images = {"data/aloeL.jpg": photo(0), "data/aloeR.jpg": photo(1), "data/fruits.jpg": photo(2)}
    assert ["data/aloeL.jpg", "data/aloeR.jpg"] in photo_sets.scenes(images)


def test_the_split_keeps_scenes_whole_and_does_not_depend_on_their_order():
    groups = [[f"p{i}.jpg", f"q{i}.jpg"] for i in range(20)]
    train, heldout = photo_sets.split(groups)
    assert len(heldout) == 5 and sorted(train + heldout) == sorted(groups)
    assert photo_sets.split(groups[::-1]) == (train, heldout)


def test_tiles_are_the_whole_photo_and_parts_of_it_that_show_something():
    image = photo(0, (1200, 900))
    image.paste((90, 120, 200), (0, 0, 600, 900))  # half of it sky
    cut = photo_sets.tiles(image, 50, random.Random(0))
    assert cut[0].size == (341, 256) and {tile.size for tile in cut[1:]} == {(256, 256)}
    assert 3 < len(cut) <= 1 + 2 + 4 * 3
    assert all(np.asarray(tile.convert("L")).std() > 8 for tile in cut)


def test_no_class_of_the_set_to_choose_on_is_in_the_set_to_report():
    patterns = [
        {pattern for classes in photo_sets.LABELLED[side].values() for some in classes.values() for pattern in some}
        for side in "ab"
    ]
    assert not patterns[0] & patterns[1]
    assert not set(photo_sets.PHOTOS["a"]) & set(photo_sets.PHOTOS["b"])


@pytest.mark.parametrize("packed", [False, True])
def test_files_of_a_qt_archive_are_found_by_path(tmp_path, packed):
    names = b"".join(struct.pack(">HI", len(n), 0) + n.encode("utf-16-be") for n in ("pictures", "one.jpg"))
    content = struct.pack(">I", 5) + zlib.compress(b"hello") if packed else b"hello"
    data = struct.pack(">I", len(content)) + content
    second = 6 + 2 * len("pictures")
    tree = struct.pack(">IHIIQ", 0, 2, 1, 1, 0) + struct.pack(">IHIIQ", 0, 2, 1, 2, 0)
    tree += struct.pack(">IHHHIQ", second, int(packed), 0, 0, 0, 0)
    header = struct.pack(">4s4I", b"qres", 2, 20 + len(data) + len(names), 20, 20 + len(data))
    (tmp_path / "a.rcc").write_bytes(header + data + names + tree)
    assert dict(photo_sets.qt_resources(tmp_path / "a.rcc")) == {"pictures/one.jpg": b"hello"}
