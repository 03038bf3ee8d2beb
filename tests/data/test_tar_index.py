"""The index of tar shards: kept beside them, made again when they change, no memory for each image."""

import io
import pickle
import shutil
import tarfile
import tracemalloc

import numpy as np
import pytest

from dinov2_zoo.data import tar_index
from dinov2_zoo.data.tar_index import FOLDER, MEMBER, cache_folder, open_index
from dinov2_zoo.data.tar_shards import TarShards
from dinov2_zoo.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_tar(path, members):
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def two_shards(folder):
    long = "folder/" + "x" * 200  # longer than a header holds
    first = {"a.jpg": b"A", "a.cls": b"3", "b.JPG": b"BB", "b.cls": b"4", "c.txt": b"?", "d.mp4": b"?"}
    second = {f"{long}.png": b"CCC", f"{long}.cls": b"5", "ümlaut.jpg": b"", "ümlaut.cls": b"6"}
    return [write_tar(folder / "0.tar", first), write_tar(folder / "1.tar", {}), write_tar(folder / "2.tar", second)]


def contents(source):
    return [(source.name(i).rpartition("/")[2], source.read(i)) for i in range(len(source))]


def test_places_names_labels_and_what_is_left_out(tmp_path):
    shards = TarShards(two_shards(tmp_path / "s"))
    assert contents(shards) == [("a.jpg", b"A"), ("b.JPG", b"BB"), ("x" * 200 + ".png", b"CCC"), ("ümlaut.jpg", b"")]
    assert shards.labels == [3, 4, 5, 6] and shards.left_out == {"other": 2}
    assert shards.name(2).startswith(f"{tmp_path}/s/2.tar/folder/xxx")


def no_reading(monkeypatch):
    def refuse(path):
        raise AssertionError(f"{path} was gone through")

    monkeypatch.setattr(tar_index, "_read_shard", refuse)


def test_the_second_opening_reads_the_index_alone_and_workers_map_it(tmp_path, monkeypatch):
    paths = two_shards(tmp_path / "s")
    expected = contents(TarShards(paths))
    assert [path.name for path in (tmp_path / "s").iterdir() if path.is_dir()] == [FOLDER]
    assert not cache_folder().exists()
    no_reading(monkeypatch)
    again = TarShards(paths)
    assert contents(again) == expected and isinstance(again._index.members, np.memmap)
    sent = pickle.dumps(again)
    assert len(sent) < 1000 and contents(pickle.loads(sent)) == expected


def test_a_changed_shard_and_a_damaged_index_are_read_again(tmp_path):
    paths = two_shards(tmp_path / "s")
    TarShards(paths)
    write_tar(paths[0], {"new.jpg": b"NEW", "more.jpg": b"MORE", "most.jpg": b"MOST"})
    assert [name for name, _ in contents(TarShards(paths))][:3] == ["new.jpg", "more.jpg", "most.jpg"]
    for folder in (tmp_path / "s" / FOLDER).iterdir():
        (folder / "members").write_bytes(b"")
    assert len(TarShards(paths)) == 5
    assert len(TarShards(paths[2:])) == 2  # another list is another index


def test_shards_that_cannot_be_written_beside_are_indexed_in_the_cache_or_in_memory(tmp_path, monkeypatch):
    paths = two_shards(tmp_path / "s")
    expected = contents(TarShards(paths))
    shutil.rmtree(tmp_path / "s" / FOLDER)
    (tmp_path / "s" / FOLDER).write_text("in the way, for root may write anywhere")
    assert contents(TarShards(paths)) == expected
    assert len(list(cache_folder().iterdir())) == 1
    shutil.rmtree(cache_folder())
    cache_folder().write_text("in the way")
    source = TarShards(paths)
    assert contents(source) == expected and not isinstance(source._index.members, np.memmap)


def test_what_is_no_shard_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError, match="No images in"):
        TarShards([write_tar(tmp_path / "s/0.tar", {"a.txt": b"?"})])
    (tmp_path / "s/1.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match="cannot be read as an uncompressed tar"):
        TarShards([tmp_path / "s/1.tar"])
    with pytest.raises(DataError, match="There is no file"):
        TarShards([tmp_path / "s/2.tar"])
    assert list((tmp_path / "s" / FOLDER).iterdir()) == []


def test_a_million_images_take_no_memory(tmp_path, monkeypatch):
    """Shards that would hold them are simulated; their index is written and read as any other."""
    count, shards = 100_000, 10
    paths = [write_tar(tmp_path / f"s/{number}.tar", {}) for number in range(shards)]
    names = [f"{number:08}.jpg" for number in range(count)]
    places = np.stack([np.arange(count) * 1024, np.full(count, 500)], 1)
    simulated = tar_index._Shard(names, places, [None] * count, [], [])
    monkeypatch.setattr(tar_index, "_read_shard", lambda path: simulated)
    open_index(paths, "shards")
    tracemalloc.start()
    index = open_index(paths, "shards")
    source = TarShards(paths)
    found = [source.name(i) for i in (0, 123_456, 999_999)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index.members) == shards * count and MEMBER.itemsize == 20 and source.labels is None
    assert [name.rpartition("/s/")[2] for name in found] == [
        "0.tar/00000000.jpg",
        "1.tar/00023456.jpg",
        "9.tar/00099999.jpg",
    ]
    assert peak < 300_000
