"""The images of a gallery in one picture."""

import numpy as np
import pytest
from PIL import Image

from rnr_gym.data import ImageSet
from rnr_gym.experiments import gallery
from rnr_gym.experiments.results import Example, Examples


def example(image):
    return Example(image=image, label="a", prediction="a", right=True, compute=0.1, path=[1])


EXAMPLES = Examples(
    cheapest=[example(3), example(0)],
    most_expensive=[example(1), example(2)],
)


def images_of(channels, size=6):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, channels, size, size)).astype(np.uint8)
    return ImageSet.of(pixels, np.arange(4), ("a", "b", "c", "d"))


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_sheet_has_pixels_of_every_image(channels):
    images = images_of(channels)
    sheet = np.asarray(gallery.sheet(images, EXAMPLES))
    for row, indices in enumerate(((3, 0), (1, 2))):
        for column, image in enumerate(indices):
            tile = sheet[6 * row : 6 * row + 6, 6 * column : 6 * column + 6]
            expected = np.moveaxis(images.images[image], 0, -1).squeeze()  # (C, H, W) -> (H, W, C)
            np.testing.assert_array_equal(tile, expected)


def test_sheet_of_two_channels_shows_their_mean():
    images = images_of(channels=2)
    sheet = np.asarray(gallery.sheet(images, EXAMPLES))
    np.testing.assert_array_equal(sheet[:6, :6], images.images[3].mean(0).round())


def test_sheet_reduces_large_images():
    images = images_of(channels=3, size=2 * gallery.LARGEST)
    sheet = gallery.sheet(images, EXAMPLES)
    assert sheet.size == (2 * gallery.LARGEST, 2 * gallery.LARGEST)


def test_saved_sheet_is_png_and_only_file(tmp_path):
    gallery.save(images_of(channels=3), EXAMPLES, tmp_path / "gallery.png")
    with Image.open(tmp_path / "gallery.png") as picture:
        assert picture.format == "PNG"
    assert [file.name for file in tmp_path.iterdir()] == ["gallery.png"]


def test_saved_sheet_shows_its_images(tmp_path):
    path = tmp_path / "gallery.png"
    gallery.save(images_of(channels=3), EXAMPLES, path)
    assert gallery.shows(path, images_of(channels=3), EXAMPLES)


def test_sheet_of_other_images_shows_others(tmp_path):
    path = tmp_path / "gallery.png"
    gallery.save(images_of(channels=3), EXAMPLES, path)
    exchanged = Examples(EXAMPLES.most_expensive, EXAMPLES.cheapest)
    assert not gallery.shows(path, images_of(channels=3), exchanged)
    assert not gallery.shows(path, images_of(channels=1), EXAMPLES)


@pytest.mark.parametrize("content", [b"", b"no picture"], ids=["empty", "text"])
def test_file_that_is_no_picture_shows_nothing(tmp_path, content):
    path = tmp_path / "gallery.png"
    path.write_bytes(content)
    assert not gallery.shows(path, images_of(channels=3), EXAMPLES)
