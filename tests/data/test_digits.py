"""The digits: where they come from, how they are split and corrupted."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from rnr_gym import data
from rnr_gym.data import SPLITS, digits
from tests.fixtures import small

EVERY_SPLIT = pytest.mark.parametrize("split", SPLITS)


@pytest.fixture(scope="module")
def splits():
    """The three image sets, by name."""
    return {split: data.load("digits", split) for split in SPLITS}


def originals(images, of_class=None):
    """The original digits in an image set, or those of one class."""
    original_id = images.original_id
    if of_class is not None:
        original_id = original_id[images.labels == of_class]
    return set(original_id.tolist())


def training_scans(count):
    """Untouched digits uint8 `(count, 1, 12, 12)`."""
    train = data.load("digits", "train")
    return small.pixels_of(train)[:count]


def test_digit_is_in_exactly_one_split(splits):
    ids = [originals(images) for images in splits.values()]
    assert set.union(*ids) == set(range(1797))
    assert sum(map(len, ids)) == 1797


@pytest.mark.parametrize("label", range(10))
def test_train_has_half_of_each_class(splits, label):
    train = len(originals(splits["train"], label))
    route = len(originals(splits["route"], label))
    test = len(originals(splits["test"], label))
    assert abs(train - route - test) <= 2
    assert abs(route - test) <= 1


@EVERY_SPLIT
def test_digit_comes_equally_often_per_severity(splits, split):
    images = splits[split]
    assert images.images.shape == (len(images), 1, 12, 12)
    assert images.classes == tuple("0123456789")

    expected = {}
    for original_id in originals(images):
        for severity in range(6):
            expected[original_id, severity] = digits.DRAWS[split]
    pairs = zip(images.original_id.tolist(), images.severity.tolist(), strict=True)
    assert Counter(pairs) == expected


@EVERY_SPLIT
def test_severity_zero_is_the_scan_itself(splits, split):
    bunch = load_digits()
    images = splits[split]
    np.testing.assert_array_equal(images.labels, bunch.target[images.original_id])

    untouched = images.take(images.severity == 0)
    inner = untouched.images[:, 0, 2:-2, 2:-2]
    scans = np.round(bunch.images[untouched.original_id] * 255 / 16)
    np.testing.assert_array_equal(inner, scans)
    # The margin is black.
    assert untouched.images.sum() == inner.sum()


def test_severity_moves_images_from_the_scan(splits):
    images = splits["route"]
    untouched = images.take(images.severity == 0)
    # `route` has every scan several times, which are all alike.
    scan_idx = {original_id: idx for idx, original_id in enumerate(untouched.original_id.tolist())}

    distances = []
    for severity in range(6):
        part = images.take(images.severity == severity)
        idx = [scan_idx[original_id] for original_id in part.original_id.tolist()]
        difference = part.images.astype(float) - untouched.images[idx]
        distances.append(np.abs(difference).mean())

    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[5] > 2 * distances[1] > 0


def test_corruptions_of_a_digit_all_differ(splits):
    images = splits["route"]
    of_first = images.original_id == images.original_id[0]
    versions = images.take(of_first & (images.severity > 0))
    assert len(versions) == 5 * digits.DRAWS["route"]

    distinct = {image.tobytes() for image in versions.images}
    assert len(distinct) == len(versions)


def test_digits_load_the_same_every_time(splits):
    again = digits.load("test")
    np.testing.assert_array_equal(again.images, splits["test"].images)


def test_digits_are_loaded_once_per_process(splits):
    assert data.load("digits", "route") is splits["route"]


@pytest.mark.parametrize("name", ["mnist", ""], ids=repr)
def test_load_of_unknown_data_set_raises(name):
    with pytest.raises(ValueError, match=f"`dataset` must be one of digits, .*, got {name!r}"):
        data.load(name, "train")


@pytest.mark.parametrize("split", ["val", "validation", ""], ids=repr)
def test_load_of_unknown_split_raises(split):
    message = f"`split` must be one of train, route, test, got {split!r}"
    with pytest.raises(ValueError, match=message):
        data.load("digits", split)


def test_augment_is_seeded_and_varies():
    scans = training_scans(64)
    once = digits.augment(scans, torch.Generator().manual_seed(1))
    again = digits.augment(scans, torch.Generator().manual_seed(1))
    other = digits.augment(scans, torch.Generator().manual_seed(2))

    assert once.dtype == torch.uint8
    assert once.shape == scans.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not torch.equal(once, scans)


def test_corrupt_leaves_severity_zero_alone():
    scans = training_scans(4)
    severity = torch.tensor([0, 5, 0, 5])
    corrupted = digits.corrupt(scans, severity, torch.Generator().manual_seed(0))
    changed = (corrupted != scans).flatten(1).any(1)
    assert changed.tolist() == [False, True, False, True]
