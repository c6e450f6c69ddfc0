"""Image sets: checked, read-only, dealt by rank."""

import numpy as np
import pytest

from rnr_gym.data import ImageSet
from rnr_gym.data.images import rank_in_class

PIXELS, LABELS = np.arange(3 * 4, dtype=np.uint8).reshape(3, 1, 2, 2), np.array([1, 0, 1])


def test_an_image_set_from_bare_arrays():
    images = ImageSet.of(PIXELS, LABELS)
    assert len(images) == 3
    assert images.classes == ("0", "1")
    assert images.source.tolist() == [0, 1, 2]
    assert images.severity.tolist() == [0, 0, 0]
    assert images.labels.dtype == np.int64


def test_an_image_set_is_a_read_only_copy():
    pixels, labels = PIXELS.copy(), LABELS.copy()
    images = ImageSet.of(pixels, labels)
    pixels[:], labels[:] = 0, 0
    np.testing.assert_array_equal(images.images, PIXELS)
    np.testing.assert_array_equal(images.labels, LABELS)
    for part in (images.images, images.labels, images.source, images.severity):
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 0


@pytest.mark.parametrize("rows", [np.array([2, 0]), np.array([True, False, True])])
def test_take_keeps_rows_together(rows):
    images = ImageSet(PIXELS, LABELS, np.array([7, 8, 9]), np.array([0, 3, 5]), ("a", "b"))
    taken = images.take(rows)
    numbers = np.arange(3)[rows]
    np.testing.assert_array_equal(taken.images, PIXELS[numbers])
    assert taken.labels.tolist() == LABELS[numbers].tolist()
    assert taken.source.tolist() == (7 + numbers).tolist()
    assert taken.severity.tolist() == np.array([0, 3, 5])[numbers].tolist()
    assert taken.classes == ("a", "b")


@pytest.mark.parametrize(
    ("images", "labels", "name"),
    [
        (PIXELS.astype(np.float32), LABELS, "images"),
        (PIXELS[0], LABELS, "images"),
        (PIXELS[:0], LABELS[:0], "images"),
        (PIXELS, LABELS[:2], "labels"),
        (PIXELS, LABELS - 1, "labels"),
        (PIXELS, LABELS + 1, "labels"),
    ],
)
def test_what_does_not_fit_together_is_refused(images, labels, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ImageSet.of(images, labels, ("a", "b"))


@pytest.mark.parametrize("name", ["source", "severity"])
def test_source_and_severity_need_a_number_an_image(name):
    parts = {"source": np.arange(3), "severity": np.arange(3)} | {name: np.arange(2)}
    with pytest.raises(ValueError, match=f"`{name}`"):
        ImageSet(PIXELS, LABELS, classes=("a", "b"), **parts)


def test_rank_in_class_counts_earlier_rows_of_the_same_label():
    assert rank_in_class(np.array([1, 0, 1, 1, 0])).tolist() == [0, 0, 1, 2, 1]
