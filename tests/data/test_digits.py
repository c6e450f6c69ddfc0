"""The digits: where they come from, how they are split and corrupted."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from rnr_gym import data
from rnr_gym.data import SPLITS, digits


@pytest.fixture(scope="module")
def splits():
    return {split: data.load("digits", split) for split in SPLITS}


def test_every_digit_is_in_exactly_one_split(splits):
    sources = [set(images.source.tolist()) for images in splits.values()]
    assert set.union(*sources) == set(range(1797))
    assert sum(map(len, sources)) == 1797


def test_train_has_a_half_and_the_others_a_quarter_each_in_every_class(splits):
    for label in range(10):
        train, route, test = (
            len(set(images.source[images.labels == label].tolist())) for images in splits.values()
        )
        assert abs(train - route - test) <= 2
        assert abs(route - test) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_each_digit_comes_equally_often_in_every_severity(splits, split):
    images = splits[split]
    assert images.images.shape == (len(images), 1, 12, 12)
    assert images.classes == tuple("0123456789")
    pairs = Counter(zip(images.source.tolist(), images.severity.tolist(), strict=True))
    sources = set(images.source.tolist())
    assert pairs == {
        (source, severity): digits.DRAWS[split] for source in sources for severity in range(6)
    }


@pytest.mark.parametrize("split", SPLITS)
def test_severity_zero_is_the_scan_itself_and_labels_are_its_own(splits, split):
    images, bunch = splits[split], load_digits()
    np.testing.assert_array_equal(images.labels, bunch.target[images.source])
    untouched = images.take(images.severity == 0)
    np.testing.assert_array_equal(
        untouched.images[:, 0, 2:-2, 2:-2], np.round(bunch.images[untouched.source] * 255 / 16)
    )
    assert untouched.images.sum() == untouched.images[:, :, 2:-2, 2:-2].sum()


def test_each_severity_moves_images_further_from_the_scan(splits):
    images = splits["route"]
    whole = images.take(images.severity == 0)
    scans = {
        int(source): image.astype(float)
        for source, image in zip(whole.source, whole.images, strict=True)
    }
    far = []
    for severity in range(6):
        part = images.take(images.severity == severity)
        far.append(
            np.mean(
                [
                    np.abs(image - scans[int(source)]).mean()
                    for source, image in zip(part.source, part.images, strict=True)
                ]
            )
        )
    assert far[0] == 0
    assert far == sorted(far)
    assert far[5] > 2 * far[1] > 0


def test_no_two_corruptions_of_a_digit_are_the_same(splits):
    images = splits["route"]
    versions = images.take((images.source == images.source[0]) & (images.severity > 0))
    assert len(versions) == 5 * digits.DRAWS["route"]
    assert len({image.tobytes() for image in versions.images}) == len(versions)


def test_loading_again_gives_the_same_images(splits):
    np.testing.assert_array_equal(digits.load("test").images, splits["test"].images)


def test_a_process_loads_a_split_once(splits):
    assert data.load("digits", "route") is splits["route"]


@pytest.mark.parametrize("name", ["mnist", ""])
def test_an_unknown_data_set_is_refused(name):
    with pytest.raises(ValueError, match="`dataset` must be one of"):
        data.load(name, "train")


@pytest.mark.parametrize("split", ["val", "validation", ""])
def test_an_unknown_split_is_refused(split):
    with pytest.raises(ValueError, match="`split` must be one of train, route, test"):
        data.load("digits", split)


def test_augmentation_is_seeded_and_varies():
    scans = torch.from_numpy(np.array(data.load("digits", "train").images[:64]))
    once, again, other = (
        digits.augment(scans, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert once.dtype == torch.uint8
    assert once.shape == scans.shape
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert not torch.equal(once, scans)


def test_corruption_leaves_severity_zero_alone():
    scans = torch.from_numpy(np.array(data.load("digits", "train").images[:4]))
    changed = digits.corrupt(scans, torch.tensor([0, 5, 0, 5]), torch.Generator().manual_seed(0))
    assert (changed != scans).flatten(1).any(1).tolist() == [False, True, False, True]
