"""Image sets: checked, read-only, split by rank."""

import numpy as np
import pytest

from rnr_gym.data import ImageSet
from rnr_gym.data.images import rank_in_class

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)
LABELS = np.array([1, 0, 1])


def test_image_set_from_bare_arrays():
    images = ImageSet.of(PIXELS, LABELS)
    assert len(images) == 3
    assert images.classes == ("0", "1")
    assert images.original_id.tolist() == [0, 1, 2]
    assert images.severity.tolist() == [0, 0, 0]
    assert images.labels.dtype == np.int64


def test_image_set_is_a_read_only_copy():
    pixels = PIXELS.copy()
    labels = LABELS.copy()
    images = ImageSet.of(pixels, labels)
    pixels[:] = 0
    labels[:] = 0
    np.testing.assert_array_equal(images.images, PIXELS)
    np.testing.assert_array_equal(images.labels, LABELS)

    for array in (images.images, images.labels, images.original_id, images.severity):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(
    ("idx", "positions"),
    [
        pytest.param([2, 0], [2, 0], id="indices"),
        pytest.param([True, False, True], [0, 2], id="mask"),
    ],
)
def test_take_keeps_entries_together(idx, positions):
    original_id = np.array([7, 8, 9])
    severity = np.array([0, 3, 5])
    images = ImageSet(
        images=PIXELS,
        labels=LABELS,
        original_id=original_id,
        severity=severity,
        classes=("a", "b"),
    )
    taken = images.take(np.array(idx))

    np.testing.assert_array_equal(taken.images, PIXELS[positions])
    np.testing.assert_array_equal(taken.labels, LABELS[positions])
    np.testing.assert_array_equal(taken.original_id, original_id[positions])
    np.testing.assert_array_equal(taken.severity, severity[positions])
    assert taken.classes == ("a", "b")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        pytest.param(PIXELS.astype(np.float32), LABELS, "`images` must be uint8", id="floats"),
        pytest.param(PIXELS[:, 0], LABELS, "`images` must be uint8", id="three axes"),
        pytest.param(PIXELS[:0], LABELS[:0], "`images` must hold at least one", id="no image"),
        pytest.param(
            PIXELS, LABELS[:2], "`labels` must be whole numbers of shape", id="too few labels"
        ),
        pytest.param(PIXELS, LABELS - 1, "`labels` must be 0 or above", id="negative label"),
        pytest.param(PIXELS, LABELS + 1, "`labels` must lie in", id="label without class"),
    ],
)
def test_image_set_rejects_unfit_arrays(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ImageSet.of(images, labels, ("a", "b"))


@pytest.mark.parametrize("name", ["original_id", "severity"])
def test_image_set_needs_a_number_per_image(name):
    numbers = {"original_id": np.arange(3), "severity": np.arange(3)}
    numbers[name] = np.arange(2)
    with pytest.raises(
        ValueError, match=rf"`{name}` must be whole numbers of shape \(3,\), got int64 \(2,\)"
    ):
        ImageSet(images=PIXELS, labels=LABELS, classes=("a", "b"), **numbers)


def test_rank_in_class_counts_earlier_images():
    ranks = rank_in_class(np.array([1, 0, 1, 1, 0]))
    assert ranks.tolist() == [0, 0, 1, 2, 1]
