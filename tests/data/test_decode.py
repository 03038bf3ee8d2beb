"""Whatever turns up in a folder of pictures decodes to what a person sees, or to one clear error."""

import io

import numpy as np
import pytest
from PIL import Image

from dinov2_zoo.data.decode import DecodeError, decode


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height=24, width=32):
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 9, columns * 7, 200 - rows * 3], -1).clip(0, 255).astype(np.uint8))


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_rgb_and_opened_images_pass_unchanged():
    for raw in (encoded(photo(), "PNG"), photo()):
        assert (pixels(decode(raw)) == np.asarray(photo())).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(orientation):
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo() if stored is None else photo().transpose(stored)
    assert (pixels(decode(encoded(image, "PNG", exif=exif))) == np.asarray(photo())).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"MM\x00*\xff\xff\xff\xffgarbage", b"no TIFF header"])
def test_damaged_exif_leaves_the_picture_as_stored(exif):
    raw = encoded(photo(), "JPEG", exif=b"Exif\x00\x00" + exif)
    assert decode(raw).size == photo().size


def test_cmyk_jpeg():
    shown = pixels(decode(encoded(photo().convert("CMYK"), "JPEG", quality=95)))
    assert np.abs(shown - np.asarray(photo())).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    shown = pixels(decode(encoded(Image.fromarray(values), kind)))
    assert (shown == np.arange(256).reshape(16, 16, 1)).all()


def test_float_grey_in_either_usual_range():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    unit, byte = (pixels(decode(encoded(Image.fromarray(v), "TIFF"))) for v in (values, values * 255))
    assert (unit == byte).all() and unit.min() == 0 and unit.max() == 255


def test_palette_and_bilevel():
    assert (pixels(decode(encoded(Image.new("P", (4, 4), 1), "PNG"))) >= 0).all()
    few = photo().quantize(8)
    assert (pixels(decode(encoded(few, "PNG"))) == np.asarray(few.convert("RGB"))).all()
    bilevel = Image.fromarray(np.eye(8) > 0)
    assert (pixels(decode(encoded(bilevel, "PNG")))[..., 0] == np.eye(8) * 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode):
    image = Image.new(mode, (3, 1), (0,) * (len(mode) - 1) + (0,))
    image.putpixel((1, 0), (0,) * (len(mode) - 1) + (255,))
    image.putpixel((2, 0), (0,) * (len(mode) - 1) + (128,))
    assert pixels(decode(encoded(image, "PNG")))[0, :, 0].tolist() == [255, 0, 127]


def test_transparent_palette_entry_lies_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    shown = pixels(decode(encoded(image, "PNG", transparency=0)))
    assert shown[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    raw = encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert (pixels(decode(raw)) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_file_cut_off_is_an_error_wherever_it_is_cut(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    raw = encoded(noise, kind)
    assert decode(raw).size == (64, 64)
    for share in (0.02, 0.3, 0.7):
        with pytest.raises(DecodeError):
            decode(raw[: int(len(raw) * share)])


def test_errors_say_what_is_wrong():
    with pytest.raises(DecodeError, match=r"empty \(0 bytes\)"):
        decode(b"")
    with pytest.raises(DecodeError, match=r"not an image of a known format.*<html>"):
        decode(b"<html>404</html>")
    with pytest.raises(DecodeError, match=r"32 x 24 = 768 pixels, more than 767: make it smaller"):
        decode(encoded(photo(), "PNG"), max_pixels=767)
    assert decode(encoded(photo(), "PNG"), max_pixels=768).size == (32, 24)


def test_a_bomb_is_refused_before_its_pixels_are_made():
    header = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    header[18:26] = (60_000).to_bytes(4, "little") * 2
    with pytest.raises(DecodeError, match=r"too large.*3600000000 pixels"):
        decode(bytes(header))


def stored(size, kind="JPEG", turned=None, **options):
    """A smooth picture, as a file; `turned`: its EXIF orientation."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    waves = np.stack([rows * 255 / size[1], columns * 255 / size[0], 128 + 80 * np.sin(columns / 20)], -1)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = turned
    return encoded(Image.fromarray(waves.astype(np.uint8)), kind, exif=exif, **options)


@pytest.mark.parametrize("turned", [None, 3, 6, 7])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_jpeg_comes_out_smaller_and_upright(scale, turned):
    assert decode(stored((203, 101)), scale=lambda *_: scale).size == (-(-203 // scale), -(-101 // scale))
    raw = stored((208, 104), turned=turned, quality=95)
    whole, small = decode(raw), decode(raw, scale=lambda width, height: scale)
    assert small.size == tuple(side // scale for side in whole.size)
    shrunk = whole.resize(small.size, Image.Resampling.BOX)
    assert np.abs(pixels(small).astype(float) - pixels(shrunk)).mean() < 4
    assert decode(raw, scale=lambda width, height: 1).size == whole.size


def test_the_scale_is_asked_with_the_stored_size_and_other_formats_stay_whole():
    asked = []
    decode(stored((203, 101), turned=6), scale=lambda *size: asked.append(size) or 1)
    assert asked == [(203, 101)]
    assert decode(stored((64, 48), "PNG"), scale=lambda *_: 2).size == (64, 48)
    opened = Image.open(io.BytesIO(stored((64, 48))))
    assert decode(opened, scale=lambda *_: 2).size == (64, 48)  # it may be asked for again, whole
    grey = encoded(Image.new("L", (64, 48), 77), "JPEG")
    assert decode(grey, scale=lambda *_: 2).size == (32, 24)
    assert (pixels(decode(encoded(Image.new("CMYK", (64, 48)), "JPEG"), scale=lambda *_: 4)).shape) == (12, 16, 3)


def test_a_small_jpeg_cut_off_is_an_error_too():
    raw = stored((256, 256), quality=95)
    with pytest.raises(DecodeError):
        decode(raw[: len(raw) // 2], scale=lambda *_: 2)
