"""Every kind of source gives back the same bytes in a fixed order; every bad input is refused with the remedy."""

import http.server
import io
import pickle
import tarfile
import threading

import pytest
from PIL import Image

from dinov2_zoo.data import tables
from dinov2_zoo.data.decode import DecodeError, decode
from dinov2_zoo.data.sources import heldout_source, open_source
from dinov2_zoo.errors import DataError


def png(shade, size=(6, 4)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [png(shade) for shade in (0, 50, 100, 150)]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def contents(source):
    return [source.read(i) for i in range(len(source))]


def test_a_folder_is_read_in_depth_sorted_and_without_hidden_files(tmp_path):
    for name, data in zip(("b/deep/2.PNG", "a/1.png", "z.jpeg", "a/0.png"), IMAGES, strict=True):
        write(tmp_path / name, data)
    write(tmp_path / ".cache/x.png", b"?")
    write(tmp_path / "a/._0.png", b"?")
    write(tmp_path / "a/notes.md", b"?")
    source = open_source(str(tmp_path))
    assert [source.name(i) for i in range(4)] == [
        str(tmp_path / n) for n in ("a/0.png", "a/1.png", "b/deep/2.PNG", "z.jpeg")
    ]
    assert contents(source) == [IMAGES[3], IMAGES[1], IMAGES[0], IMAGES[2]]
    assert source.labels is None and source.classes is None


def test_two_or_more_subfolders_are_classes_and_one_is_not(tmp_path):
    for name, data in zip(("dog/x/1.png", "cat/1.png", "cat/0.png"), IMAGES, strict=False):
        write(tmp_path / name, data)
    source = open_source(str(tmp_path))
    assert source.classes == ["cat", "dog"] and source.labels == [0, 0, 1]
    only = open_source(str(tmp_path / "dog"))
    assert only.labels is None and only.classes is None


def test_links_to_a_folder_count_once_and_loops_end(tmp_path):
    write(tmp_path / "real/0.png", IMAGES[0])
    (tmp_path / "real/loop").symlink_to(tmp_path)
    assert len(open_source(str(tmp_path))) == 1


def test_a_list_gives_paths_relative_to_itself(tmp_path):
    for i, data in enumerate(IMAGES):
        write(tmp_path / f"images/{i} x.png", data)
    listing = tmp_path / "list.txt"
    listing.write_text("# comment\n\nimages/2 x.png\nimages/0 x.png\n" + f"{tmp_path}/images/1 x.png\n")
    source = open_source(str(listing))
    assert contents(source) == [IMAGES[2], IMAGES[0], IMAGES[1]] and source.labels is None
    listing.write_text("images/2 x.png\t7\nimages/0 x.png\t3\n")
    assert open_source(str(listing)).labels == [7, 3]


@pytest.mark.parametrize("text", ["s/part-{000..001}.tar", "s/*.tar", "s/part-{000,001}.tar", "s/part-00?.tar"])
def test_tar_shards_by_wildcard_and_braces(tmp_path, text):
    write_tar(tmp_path / "s/part-001.tar", {"a/2.png": IMAGES[2], "a/2.json": b"{}", "a/2.cls": b"5"})
    members = {"0.cls": b"1\n", "0.png": IMAGES[0], "1.png": IMAGES[1], "1.cls": b"2", "._1.png": b"?"}
    write_tar(tmp_path / "s/part-000.tar", members)
    source = open_source(f"{tmp_path}/{text}")
    assert contents(source) == IMAGES[:3] and source.labels == [1, 2, 5]
    assert source.name(2) == f"{tmp_path}/s/part-001.tar/a/2.png"
    assert contents(pickle.loads(pickle.dumps(source))) == IMAGES[:3]


def test_a_tar_with_labels_for_some_images_has_none(tmp_path):
    write_tar(tmp_path / "x.tar", {"0.png": IMAGES[0], "0.cls": b"1", "1.png": IMAGES[1]})
    source = open_source(str(tmp_path / "x.tar"))
    assert len(source) == 2 and source.labels is None


def labelled_dataset():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"]), "picture": datasets.Image()})
    rows = {"label": [1, 0, 1, 1], "picture": [{"bytes": data, "path": None} for data in IMAGES]}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Keep what `datasets` caches out of the home folder."""
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_parquet_of_datasets(tmp_path, own_cache):
    labelled_dataset().select([0, 1]).to_parquet(tmp_path / "d-0.parquet")
    labelled_dataset().select([2, 3]).to_parquet(tmp_path / "d-1.parquet")
    source = open_source(f"{tmp_path}/d-*.parquet")
    assert contents(source) == IMAGES
    assert source.labels == [1, 0, 1, 1] and source.classes == ["cat", "dog"]
    assert contents(pickle.loads(pickle.dumps(source))) == IMAGES


def test_parquet_of_others_with_a_struct_or_plain_bytes(tmp_path, own_cache):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    struct = [{"bytes": data, "path": "x"} for data in IMAGES]
    parquet.write_table(arrow.table({"image": struct, "labels": [3, 1, 4, 1]}), tmp_path / "struct.parquet")
    source = open_source(str(tmp_path / "struct.parquet"))
    assert contents(source) == IMAGES and source.labels == [3, 1, 4, 1] and source.classes is None
    parquet.write_table(arrow.table({"jpg": IMAGES, "label": [-1] * 4}), tmp_path / "bytes.parquet")
    source = open_source(str(tmp_path / "bytes.parquet"))
    assert contents(source) == IMAGES and source.labels is None  # -1 means unpublished


def test_a_saved_dataset_and_its_splits(tmp_path, own_cache):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": labelled_dataset()}).save_to_disk(tmp_path / "saved")
    source = open_source(str(tmp_path / "saved/train"))
    assert contents(source) == IMAGES and source.labels == [1, 0, 1, 1]
    with pytest.raises(DataError, match=r"several splits: name one of them, as in .*saved/train"):
        open_source(str(tmp_path / "saved"))


def test_a_hub_dataset_is_asked_for_by_name_config_and_split(monkeypatch, reachable):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return labelled_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    reachable(True)
    assert contents(open_source("hf:some/set:small@test")) == IMAGES
    assert open_source("hf:some/set").name(2) == "hf:some/set[2]"
    assert asked == [("some/set", "small", "test"), ("some/set", None, "train")]


@pytest.fixture
def reachable(monkeypatch):
    """Says whether the Hub answers, without asking it."""
    return lambda answer: monkeypatch.setattr(tables, "_answers", lambda _: answer)


def test_a_hub_dataset_that_cannot_be_loaded_says_what_to_do(monkeypatch, reachable):
    datasets = pytest.importorskip("datasets")

    def fail(*_, **__):
        raise ValueError("Unknown split\nlong traceback")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    reachable(True)
    with pytest.raises(DataError, match=r"\(Unknown split\): check name, config and split.*local folder\.$"):
        open_source("hf:some/set")


def test_without_a_network_the_cache_is_asked_alone_and_nothing_is_tried_again(monkeypatch, reachable, tmp_path):
    datasets = pytest.importorskip("datasets")
    config, load, offline = pytest.importorskip("datasets.config"), datasets.load_dataset, []

    def watched(*words, **options):
        offline.append(config.HF_HUB_OFFLINE)
        return load(*words, **options, cache_dir=str(tmp_path))

    monkeypatch.setattr(datasets, "load_dataset", watched)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("tried again"))
    reachable(False)
    with pytest.raises(
        DataError, match=r"hf:some/set is not in the cache, and http.* cannot be reached: check the netw"
    ):
        open_source("hf:some/set")
    assert offline == [True] and config.HF_HUB_OFFLINE is False


def test_a_server_that_refuses_answers_and_none_does_not(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # knows no HEAD: 501
    threading.Thread(target=server.handle_request, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    assert tables._answers(address)
    server.server_close()
    assert not tables._answers(address)


def test_package_photos_set_aside_their_heldout_part():
    assert heldout_source("package:photos/train") == "package:photos/heldout"
    assert heldout_source("package:digits") is None and heldout_source("/photos/train") is None


def test_a_file_that_vanished_is_an_image_that_cannot_be_decoded(tmp_path):
    write(tmp_path / "0.png", IMAGES[0])
    write_tar(tmp_path / "x.tar", {"0.png": IMAGES[0]})
    sources = open_source(str(tmp_path)), open_source(str(tmp_path / "x.tar"))
    (tmp_path / "0.png").unlink()
    (tmp_path / "x.tar").unlink()
    for source in sources:
        with pytest.raises(DecodeError, match="cannot be read"):
            source.read(0)


def test_bad_inputs_are_refused_with_what_to_do(tmp_path):
    for i in range(3):
        write(tmp_path / f"papers/{i}.pdf", b"?")
    write(tmp_path / "shards/0.tar", b"not a tar")
    write(tmp_path / "empty/.hidden", b"")
    write(tmp_path / "video.mp4", b"?")
    write(tmp_path / "mixed.txt", b"video.mp4\t1\nvideo.mp4\n")
    write(tmp_path / "words.txt", b"# labels\nvideo.mp4\tcat\n")
    write(tmp_path / "none.txt", b"# nothing\n")
    write(tmp_path / "gone.txt", b"gone.png\n")
    write(tmp_path / "bad.parquet", b"not parquet")
    write_tar(tmp_path / "gz.tar", {"0.png": IMAGES[0]}, "w:gz")
    write_tar(tmp_path / "text.tar", {"0.txt": b"a", "1.txt": b"b"})
    write_tar(tmp_path / "label.tar", {"0.png": IMAGES[0], "0.cls": b"cat"})
    write_tar(tmp_path / "cut.tar", {"0.png": b"x" * 4000, "1.png": b"y" * 4000})
    whole = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2000])
    for text, message in {
        "": r"source is empty: name a folder",
        "nowhere": r"no file or folder .*nowhere: name a folder",
        "papers": r"looked for .*\.jpg.* and found 3 \.pdf files; name the folder",
        "shards": r"found 1 \.tar file; for these name .*shards/\*\.tar",
        "empty": r"found no files at all",
        "video.mp4": r"is no source of images: name",
        "mixed.txt": r"labels for 1 of 2 images: give all of them one, or none",
        "words.txt": r"line 2: 'cat' is not an integer label: correct it",
        "none.txt": r"names no images: write one path a line",
        "gone.txt": r"there is no file .*gone\.png: correct the list",
        "bad.parquet": r"cannot be read as parquet .*: check the files",
        "gz.tar": r"uncompressed tar .* decompress it",
        "cut.tar": r"cut off, fetch it again",
        "text.tar": r"found 2 \.txt files",
        "label.tar": r"0\.cls holds b'cat', not an integer label",
        "s-{0..2}.tar": r"no file .*s-0\.tar: check the path",
        "s-*.tar": r"No file fits .*s-\*\.tar: check",
    }.items():
        with pytest.raises(DataError, match=message):
            open_source(f"{tmp_path}/{text}" if text else "  ")
    with pytest.raises(DataError, match="write hf:name"):
        open_source("hf:@train")


def test_package_photos_open_and_decode():
    try:
        source = open_source("package:photos/train")
    except DataError as error:
        pytest.skip(str(error))
    assert len(source) == 30 and decode(source.read(0)).mode == "RGB"
