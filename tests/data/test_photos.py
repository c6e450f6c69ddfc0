"""Image files: images of every kind are read alike, and anything else is refused with a reason."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from rnr_gym.data import photos
from rnr_gym.data.photos import RefusedImage, network_input, read_image

RED = (255, 0, 0)
GREEN = (0, 255, 0)
BLUE = (0, 0, 255)
YELLOW = (255, 255, 0)
SIDE = (32, 32)
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}


@pytest.fixture
def pixels():
    """A picture uint8 `(40, 60, 3)`, each corner in a colour of its own."""
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20, :30] = (255, 0, 0)
    picture[:20, 30:] = (0, 255, 0)
    picture[20:, :30] = (0, 0, 255)
    picture[20:, 30:] = (255, 255, 0)
    return picture


def save(folder, image, suffix="png", **kwargs):
    file = folder / f"image.{suffix}"
    image.save(file, **kwargs)
    return file


def write(folder, content, name="image.png"):
    file = folder / name
    file.write_bytes(content)
    return file


def png_of_size(width, height):
    """A PNG of a few bytes whose header promises that many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, part in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(name + part))
        content += struct.pack(">I", len(part)) + name + part + checksum
    return content


# Images


@pytest.mark.parametrize("suffix", ["bmp", "png"])
def test_lossless_image_is_read_as_it_is(tmp_path, pixels, suffix):
    file = save(tmp_path, Image.fromarray(pixels), suffix)
    np.testing.assert_array_equal(np.asarray(read_image(file)), pixels)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "gif"])
def test_other_formats_are_read_as_rgb(tmp_path, pixels, suffix):
    image = read_image(save(tmp_path, Image.fromarray(pixels), suffix))
    assert (image.mode, image.size) == ("RGB", (60, 40))
    difference = np.abs(np.asarray(image).astype(int) - pixels)
    # Away from the edges between the colours, which they blur.
    assert difference[5:15, 5:25].max() < 16


def test_format_is_known_by_content_alone(tmp_path, pixels):
    file = save(tmp_path, Image.fromarray(pixels), "bmp").rename(tmp_path / "image.txt")
    np.testing.assert_array_equal(np.asarray(read_image(file)), pixels)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    white = Image.new("RGB", (8, 8), "white").convert(mode)
    image = read_image(save(tmp_path, white, suffix))
    assert image.mode == "RGB"
    assert np.asarray(image).min() > 250


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    grey = np.array([[0, 0x4000, 0x8000, 0xFFFF]], np.uint16)
    image = read_image(save(tmp_path, Image.fromarray(grey)))
    np.testing.assert_array_equal(np.asarray(image)[0, :, 0], [0, 64, 128, 255])


def test_transparent_pixels_become_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (*RED, 0))
    image.putpixel((1, 0), (*RED, 255))
    opaque = read_image(save(tmp_path, image))
    assert [opaque.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), RED]


def test_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.new("P", (1, 1), 0)
    image.putpalette(RED)
    file = save(tmp_path, image, transparency=0)
    assert read_image(file).getpixel((0, 0)) == (255, 255, 255)


def test_image_is_turned_as_the_camera_says(tmp_path, pixels):
    exif = Image.Exif()
    # The tag of the orientation, and the number for a quarter turn clockwise.
    exif[0x0112] = 6
    upright = read_image(save(tmp_path, Image.fromarray(pixels), exif=exif))
    assert upright.size == (40, 60)
    corners = [upright.getpixel(place) for place in ((0, 0), (39, 0), (0, 59), (39, 59))]
    assert corners == [BLUE, RED, YELLOW, GREEN]


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, BLUE)]
    file = save(tmp_path, frames[0], "gif", save_all=True, append_images=frames[1:])
    assert read_image(file).getpixel((0, 0)) == RED


# What is no image


def test_text_is_refused(tmp_path):
    with pytest.raises(RefusedImage, match="not an image that can be read here; it must be PNG"):
        read_image(write(tmp_path, b"these are words"))


def test_other_image_format_is_refused(tmp_path):
    file = save(tmp_path, Image.new("RGB", (4, 4)), "tiff")
    with pytest.raises(RefusedImage, match="not an image that can be read here"):
        read_image(file)


def test_vector_graphics_are_refused(tmp_path):
    file = write(tmp_path, b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image.svg")
    with pytest.raises(RefusedImage, match="not an image that can be read here"):
        read_image(file)


def test_empty_file_is_refused(tmp_path):
    with pytest.raises(RefusedImage, match="file is empty"):
        read_image(write(tmp_path, b""))


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_image_is_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = save(tmp_path, Image.fromarray(noise), suffix).read_bytes()
    with pytest.raises(RefusedImage, match=r"damaged|not an image"):
        read_image(write(tmp_path, content[: len(content) // 2]))


@pytest.mark.parametrize("suffix", FORMATS)
def test_garbled_image_is_read_or_refused(tmp_path, pixels, suffix):
    """Four bytes are changed at random; no other error comes out of that."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=FORMATS[suffix])
    rng = np.random.default_rng(1)
    for _ in range(40):
        content = bytearray(buffer.getvalue())
        for position in rng.integers(0, len(content), 4):
            content[position] = rng.integers(256)
        with suppress(RefusedImage):
            assert read_image(write(tmp_path, bytes(content))).mode == "RGB"


@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_too_many_pixels_are_refused_undecoded(tmp_path, side):
    """Beyond the limit here, beyond the one at which Pillow warns, and beyond its own."""
    with pytest.raises(RefusedImage, match="more than 50 megapixels"):
        read_image(write(tmp_path, png_of_size(side, side)))


def test_large_file_is_refused_unread(tmp_path, monkeypatch):
    file = tmp_path / "image.png"
    with file.open("wb") as sparse:
        sparse.truncate(photos.MAX_BYTES + 1_000_000)
    monkeypatch.setattr(type(file), "read_bytes", lambda self: pytest.fail("it was read"))
    with pytest.raises(RefusedImage, match="has 21 MB; at most 20 MB are read"):
        read_image(file)


# What the network gets


def test_image_of_right_size_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (*SIDE, 3), dtype=np.uint8)
    actual = network_input(Image.fromarray(pixels), SIDE)
    np.testing.assert_array_equal(actual, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(1, 1), (7, 500), (640, 480), (33, 32)])
def test_any_size_fits_the_network(size):
    actual = network_input(Image.new("RGB", size, RED), SIDE)
    assert (actual.shape, actual.dtype) == ((3, *SIDE), np.uint8)
    assert actual[0].min() == 255
    assert actual[1:].max() == 0


def test_central_square_is_used():
    """Of a wide image in three colours, the middle one alone is left."""
    wide = np.zeros((30, 90, 3), np.uint8)
    wide[:, :30] = RED
    wide[:, 30:60] = GREEN
    wide[:, 60:] = BLUE
    actual = network_input(Image.fromarray(wide), SIDE)
    assert actual[1, :, 2:-2].min() == 255
    assert actual[::2, :, 2:-2].max() == 0


def test_reduction_averages_instead_of_picking_pixels():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    actual = network_input(Image.fromarray(stripes), SIDE)
    assert np.abs(actual.astype(int) - 127).max() < 12
