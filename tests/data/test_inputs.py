"""Whatever holds images is taken as images; what holds none is refused with what to give instead."""

import http.server
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photos

from dinov2_zoo.data import urls
from dinov2_zoo.data.inputs import Inputs
from dinov2_zoo.data.read_ahead import read_ahead
from dinov2_zoo.errors import DataError

CAT = photos.chelsea()
GREY = photos.camera()


@pytest.fixture
def folder(tmp_path):
    """Two photos, a text, and below it a third one."""
    for name in ("a.png", "b.png", "more/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(CAT).save(tmp_path / name)
    (tmp_path / "notes.md").touch()
    return tmp_path


def decoded(images):
    return [np.asarray(photo.image()) for photo in Inputs(images)]


def channels_first(array):
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


ONE = {
    "PIL": Image.fromarray(CAT),
    "uint8": CAT,
    "float64": CAT / 255,
    "float32 in a batch": (CAT / 255).astype(np.float32)[None],
    "tensor": channels_first(CAT),
    "float tensor": channels_first(CAT) / 255,
    "batch": channels_first(CAT)[None],
    "tensor with gradient": (channels_first(CAT) / 255).requires_grad_(),
    "list": [CAT],
    "generator": (image for image in [CAT]),
}


@pytest.mark.parametrize("kind", ONE)
def test_a_picture_in_memory_keeps_its_pixels(kind):
    (found,) = decoded(ONE[kind])
    assert (found == CAT).all()


def test_half_precision_keeps_them_but_for_its_rounding():
    for dtype, levels in ((torch.float16, 1), (torch.bfloat16, 1)):
        (found,) = decoded((channels_first(CAT) / 255).to(dtype))
        assert np.abs(found.astype(int) - CAT).max() <= levels


@pytest.mark.parametrize("grey", [GREY, GREY[..., None], GREY / 255, torch.from_numpy(GREY.copy())[None]])
def test_grey_becomes_rgb(grey):
    (found,) = decoded(grey)
    assert (found == GREY[..., None]).all() and found.shape == (512, 512, 3)


def test_transparency_lies_over_white():
    clear = np.concatenate([CAT, np.zeros_like(CAT[..., :1])], axis=-1)
    assert all((found == 255).all() for found in decoded([clear, channels_first(clear)]))


def test_batches_and_single_ones_mix_and_are_numbered():
    inputs = Inputs([CAT, np.stack([CAT] * 3), Image.fromarray(CAT)])
    assert inputs.total == 5 and [photo.name for photo in inputs] == [f"image {i}" for i in range(5)]


def test_paths_folders_patterns_and_texts_of_sources(folder, monkeypatch):
    def names(images):
        return [photo.name.removeprefix(f"{folder}/") for photo in Inputs(images)]

    everything = ["a.png", "b.png", "more/c.png"]
    assert names(folder / "a.png") == names(str(folder / "a.png")) == ["a.png"]
    assert names(folder) == names(str(folder)) == everything
    assert names(f"{folder}/*.png") == names(f"{folder}/{{a,b}}.png") == ["a.png", "b.png"]
    assert names(f"{folder}/**/*.png") == everything
    assert names([folder / "more", str(folder / "a.png")]) == ["more/c.png", "a.png"]
    assert names(np.array([str(folder / "b.png")])) == ["b.png"]
    assert names(path for path in [folder / "b.png"]) == ["b.png"]
    (folder / "list.txt").write_text("b.png\na.png\n")
    assert names(folder / "list.txt") == ["b.png", "a.png"]
    assert len(names("package:photos/heldout")) == 9
    monkeypatch.setenv("HOME", str(folder))
    assert names("~/a.png") == ["a.png"]


def test_a_name_with_a_bracket_is_a_name(folder):
    (folder / "a.png").rename(folder / "[a].png")
    assert len(decoded(folder / "[a].png")) == 1


def test_what_lies_beside_is_counted(folder):
    inputs = Inputs(folder)
    assert len(list(inputs)) == 3 and inputs.left_out == {"other": 1}


def test_datasets_whole_and_streamed(folder):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"n": [0, 1], "image": [str(folder / "a.png")] * 2})
    rows = rows.cast_column("image", datasets.Image())
    for given in (rows, rows.to_iterable_dataset()):
        found = list(Inputs(given))
        assert [photo.name for photo in found] == ["dataset[0]", "dataset[1]"]
        assert (np.asarray(found[1].image()) == CAT).all()
    with pytest.raises(DataError, match=r"several splits: give one, as in dataset\['train'\]"):
        Inputs(datasets.DatasetDict(train=rows))
    for given in (rows.remove_columns("image"), rows.remove_columns("image").to_iterable_dataset()):
        with pytest.raises(DataError, match="No column of images in dataset; its columns are n"):
            list(Inputs(given))


BAD = {
    "nothing": ([], "no images: give at least one"),
    "an empty batch": (np.zeros((0, 4, 4, 3), np.uint8), "no images"),
    "a number": (3, "int is no image: give paths"),
    "a number among pictures": ([CAT, None], "NoneType is no image"),
    "pairs": ([(CAT, 1)], r"tuple is no image.*\(image for image, label in dataset\)"),
    "channels first in numpy": (CAT.transpose(2, 0, 1), r"shape \[3, 300, 451\].*channels come last in numpy"),
    "channels last in torch": (torch.from_numpy(CAT.copy()), r"\[300, 451, 3\] is no picture: give \[3, H, W\]"),
    "two channels": (CAT[..., :2], r"\[300, 451, 2\] is no picture"),
    "a vector": (torch.rand(5), r"\[5\] is no picture"),
    "a picture without pixels": (np.zeros((0, 4, 3), np.uint8), "is no picture"),
    "integers": (CAT.astype(np.int64), "int64 have no agreed range: give uint8 of 0..255, or floats of 0..1"),
    "floats of 0..255": (CAT.astype(np.float32), "image 0 has numbers from 0 to 231.*uint8 for 0..255"),
    "normalised": ([CAT, channels_first(CAT) / 60 - 2], "image 1 has numbers from -2.*call the model itself"),
    "not a number": (np.full((4, 4, 3), np.nan), "from nan"),
    "no file": ("/nowhere/a.jpg", "no file or folder /nowhere/a.jpg: name a photo, an address, a folder"),
    "no text": ("", "source is empty"),
    "no fit": ("/nowhere/*.jpg", r"No file fits /nowhere/\*\.jpg"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_image_is_refused_with_what_to_give(case):
    images, message = BAD[case]
    with pytest.raises(DataError, match=message):
        decoded(images)


class _Server(http.server.BaseHTTPRequestHandler):
    """A photo at /photo, a large one at /large, drops at /slow, and nothing elsewhere."""

    body = b""

    def do_GET(self):
        self.send_response(200 if self.path in ("/photo", "/large", "/slow") else 404)
        self.end_headers()
        if self.path == "/slow":
            for _ in range(40):
                self.wfile.write(b".")
                self.wfile.flush()
                time.sleep(0.05)
        elif self.path == "/large":
            self.wfile.write(bytes(5000))
        else:
            self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def address(folder, monkeypatch):
    """Of a server on this machine."""
    monkeypatch.setenv("no_proxy", "*")
    _Server.body = (folder / "a.png").read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_addresses_are_fetched(address):
    (photo,) = Inputs(f"{address}/photo")
    assert photo.name == f"{address}/photo" and (np.asarray(photo.image()) == CAT).all()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/gone", "answers 404 Not Found: check the address"),
        ("/large", r"larger than 0 MiB: fetch it yourself"),
        ("/slow", r"does not come within 0\.3 s"),
    ],
)
def test_what_cannot_be_fetched_says_why(address, monkeypatch, path, message):
    monkeypatch.setattr(urls, "MAX_BYTES", 4000)
    monkeypatch.setattr(urls, "SECONDS", 0.3)
    (photo,) = Inputs(address + path)
    with pytest.raises(DataError, match=message):
        photo.image()


def test_no_server_says_so():
    (photo,) = Inputs("http://127.0.0.1:9/x.jpg")
    with pytest.raises(DataError, match=r"cannot be fetched \(.*refused\): check the address and the network"):
        photo.image()


def test_reading_ahead_keeps_the_order_and_takes_only_the_next_batch():
    taken = []

    def numbers():
        for number in range(100):
            taken.append(number)
            yield number

    batches = read_ahead(numbers(), lambda number: -number, batch_size=4, workers=3)
    assert next(batches) == [(0, 0), (1, -1), (2, -2), (3, -3)]
    assert taken == list(range(8))
    assert [len(batch) for batch in batches] == [4] * 24
    assert list(read_ahead([], abs, batch_size=4, workers=1)) == []
