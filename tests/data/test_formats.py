"""Formats that take an optional package are read with it, and counted and named without it."""

import io
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image, features
from skimage import data as photos

from dinov2_zoo.data.decode import DecodeError, decode
from dinov2_zoo.data.formats import OPTIONAL, kinds_of, name_left_out
from dinov2_zoo.data.image_sets import images_below
from dinov2_zoo.data.sources import describe, left_out_of, open_source
from dinov2_zoo.errors import DataError

PHOTO = Image.fromarray(photos.chelsea()[:256, :384])


def encoded(kind, **options):
    """A photo as HEIC, JPEG XL, AVIF, JPEG 2000 or JPEG."""
    module = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}.get(kind)
    if module is not None:
        plugin = pytest.importorskip(module)
        if kind == "HEIF":
            plugin.register_heif_opener()
    elif kind in ("AVIF", "JPEG2000") and not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}[kind]):
        pytest.skip(f"this Pillow has no {kind}")
    buffer = io.BytesIO()
    PHOTO.save(buffer, kind, **options)
    return buffer.getvalue()


def raw_photo(orientation=1):
    """A camera's raw photo, a DNG: one colour under each cell of a Bayer filter, linear light."""
    tifffile = pytest.importorskip("tifffile")
    linear = (np.asarray(PHOTO) / 255) ** 2.2 * 4000
    sensor = np.empty(linear.shape[:2], np.uint16)
    for row, column, colour in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        sensor[row::2, column::2] = linear[row::2, column::2, colour]
    from_xyz = (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570)  # of sRGB
    tags = [
        (271, "s", 0, "Maker", True),
        (272, "s", 0, "Camera", True),
        (274, "H", 1, orientation, True),
        (33421, "H", 2, (2, 2), True),  # the filter repeats after 2 x 2 cells
        (33422, "B", 4, bytes((0, 1, 1, 2)), True),
        (50706, "B", 4, bytes((1, 4, 0, 0)), True),
        (50708, "s", 0, "Maker Camera", True),
        (50717, "I", 1, 4000, True),
        (50721, "2i", 9, tuple(part for number in from_xyz for part in (round(number * 10000), 10000)), True),
        (50728, "2I", 3, (1, 1) * 3, True),  # white is white
        (50778, "H", 1, 21, True),
    ]
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, sensor, photometric="CFA", extratags=tags, metadata=None, software=False)
    return buffer.getvalue()


@pytest.fixture
def nothing_optional(monkeypatch):
    """No optional package, and a Pillow that was built without all that it can be built without."""
    for kind in OPTIONAL:
        if kind.module is not None:
            monkeypatch.setitem(sys.modules, kind.module, None)
    monkeypatch.setattr(features, "check", lambda name: False)


@pytest.mark.parametrize("kind", ["HEIF", "JXL", "AVIF", "JPEG2000"])
def test_each_kind_decodes_to_the_photo(kind):
    shown = np.asarray(decode(encoded(kind))).astype(float)
    assert np.abs(shown - np.asarray(PHOTO)).mean() < 4


@pytest.mark.parametrize("kind", ["HEIF", "JXL", "AVIF"])
def test_each_kind_is_turned_upright_once(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    shown = decode(encoded(kind, exif=exif.tobytes()))
    assert shown.size == (256, 384)
    upright = np.asarray(PHOTO.rotate(-90, expand=True)).astype(float)
    assert np.abs(np.asarray(shown) - upright).mean() < 4


def test_a_raw_photo_is_developed_at_half_its_side():
    pytest.importorskip("rawpy")
    shown = decode(raw_photo())
    assert shown.mode == "RGB" and shown.size == (192, 128)
    wanted = np.asarray(PHOTO.resize(shown.size)).astype(float)
    assert np.corrcoef(np.asarray(shown).ravel(), wanted.ravel())[0, 1] > 0.97
    assert decode(raw_photo(orientation=6)).size == (128, 192)
    with pytest.raises(DecodeError, match=r"384 x 256 = 98,304 pixels, more than 98,303"):
        decode(raw_photo(), max_pixels=98_303)
    with pytest.raises(DecodeError, match="cannot be decoded"):
        decode(raw_photo()[:3000])


def test_a_scan_is_no_raw_photo():
    buffer = io.BytesIO()
    PHOTO.save(buffer, "TIFF", tiffinfo={271: "a scanner"})
    assert decode(buffer.getvalue()).size == PHOTO.size


def test_without_its_package_a_file_names_what_to_install(nothing_optional):
    for start, package in (
        (b"\0\0\0\x18ftypheic", "pillow-heif"),
        (b"\0\0\0\x18ftypavif", "'pillow>=11.3'"),
        (b"\xff\x0a", "pillow-jxl-plugin"),
        (b"\0\0\0\x0cjP  ", "--upgrade pillow"),
        (b"\0\0\0\x18ftypcrx ", "rawpy"),
        (b"FUJIFILMCCD-RAW ", "rawpy"),
        (b"II*\0\x10\0\0\0CR\2\0", "rawpy"),
    ):
        with pytest.raises(DecodeError, match=rf"is not read here: run `.*install {package}`\.$"):
            decode(start + bytes(40))
    # Not its thumbnail, which Pillow would show.
    with pytest.raises(DecodeError, match="is raw, which is not read here"):
        decode(raw_photo())


def test_a_folder_counts_what_it_leaves_out(tmp_path, nothing_optional):
    for name in ("0.jpg", "1.jpg", "2.HEIC", "3.heif", "4.jxl", "5.nef", "6.mp4", "notes.txt", "Thumbs.db"):
        (tmp_path / name).touch()
    source = open_source(str(tmp_path))
    assert len(source) == 2
    assert left_out_of(source) == {"HEIC": 2, "JPEG XL": 1, "raw": 1, "other": 3}
    words = describe(source)
    assert words.startswith("2 photos; 2 HEIC left out (need `") and "install pillow-heif`); " in words
    assert "1 raw left out (needs `" in words and words.endswith("; 3 other files left out")


def test_with_its_package_a_file_is_an_image_like_any_other(tmp_path):
    (tmp_path / "0.heic").write_bytes(encoded("HEIF"))
    (tmp_path / "1.JXL").write_bytes(encoded("JXL"))
    source = open_source(str(tmp_path))
    assert [decode(source.read(i)).size for i in range(2)] == [PHOTO.size] * 2
    assert describe(source) == "2 photos"
    assert images_below(tmp_path) == ["0.heic", "1.JXL"]


def test_a_raw_photo_beside_its_jpeg_is_the_same_photo(tmp_path):
    for name in ("a/1.jpg", "a/1.NEF", "b/1.nef"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    kinds = kinds_of(["a/1.jpg", "a/1.NEF", "b/1.nef"])
    assert kinds[:2] == ["", "raw beside its JPEG"] and kinds[2] != kinds[1]
    assert describe(open_source(str(tmp_path / "a"))) == "1 photo; 1 raw beside its JPEG left out"


@pytest.mark.parametrize("place", ["folder", "list", "shard", "pattern"])
def test_where_nothing_can_be_read_the_package_is_named(tmp_path, nothing_optional, place):
    (tmp_path / "f").mkdir()
    for number in range(5):
        (tmp_path / f"f/{number}.heic").touch()
    (tmp_path / "list.txt").write_text("".join(f"f/{number}.heic\n" for number in range(5)))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "f", "f")
    text = {"folder": "f", "list": "list.txt", "shard": "shard.tar", "pattern": "f/*.heic"}[place]
    with pytest.raises(DataError, match=r"5 HEIC left out \(need `.*install pillow-heif`\)\.$"):
        open_source(str(tmp_path / text))


def test_a_list_leaves_out_with_their_labels_what_is_no_image(tmp_path, nothing_optional):
    for name in ("0.jpg", "no-ending"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("clip.mp4\t1\n0.jpg\t2\nx.heic\t3\nno-ending\t4\nletter.pdf\t5\n")
    source = open_source(str(tmp_path / "list.txt"))
    assert source.labels == [2, 4] and source.name(1) == str(tmp_path / "no-ending")
    assert left_out_of(source) == {"HEIC": 1, "other": 2}


def test_a_shard_counts_no_labels_and_captions(tmp_path, nothing_optional):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("0.jpg", "0.cls", "0.json", "1.heic", "1.json", "readme.md"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    assert left_out_of(open_source(str(tmp_path / "x.tar"))) == {"HEIC": 1, "other": 2}


def test_nothing_left_out_says_nothing():
    assert name_left_out({}) == "" and name_left_out({"other": 1}) == "1 other file left out"
