"""Variations of photographs: each does what it says, to every image, and nothing else."""

import pytest
import torch
from torch.nn import functional as F

from rnr_gym.data import augmentation
from rnr_gym.data.augmentation import HOLE, MARGIN

SIDE = (20, 24)
EVERY = pytest.mark.parametrize("step", ["photographs", "shifted", "cut_out"])


def run(step, images, seed=0):
    return getattr(augmentation, step)(images, torch.Generator().manual_seed(seed))


def noise(count=16, side=SIDE):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, *side), generator=generator, dtype=torch.uint8)


@EVERY
@pytest.mark.parametrize("side", [(32, 32), SIDE, (64, 64)], ids=str)
@pytest.mark.parametrize("count", [1, 16])
def test_step_keeps_shape_type_and_originals(step, side, count):
    images = noise(count, side)
    before = images.clone()
    result = run(step, images)
    assert result.dtype == torch.uint8
    assert result.shape == images.shape
    assert torch.equal(images, before)


@EVERY
def test_step_follows_its_generator_alone(step):
    images = noise()
    state = torch.random.get_rng_state()
    once = run(step, images, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(once, run(step, images, 1))
    assert not torch.equal(once, run(step, images, 2))
    torch.random.set_rng_state(state)


@EVERY
def test_step_varies_each_image_by_itself(step):
    images = noise(1).expand(64, -1, -1, -1).contiguous()
    assert len({image.numpy().tobytes() for image in run(step, images)}) > 8


def test_two_calls_with_one_generator_differ():
    generator = torch.Generator().manual_seed(0)
    first = augmentation.photographs(noise(), generator)
    assert not torch.equal(first, augmentation.photographs(noise(), generator))


def windows(image):
    """Every shifted window of one image with its border reflected, as bytes: (rows, columns)."""
    wide = F.pad(image.float()[None], [MARGIN] * 4, mode="reflect")[0].to(torch.uint8)
    height, width = image.shape[1:]
    found = {}
    for down in range(2 * MARGIN + 1):
        for right in range(2 * MARGIN + 1):
            window = wide[:, down : down + height, right : right + width]
            found[window.numpy().tobytes()] = (down - MARGIN, right - MARGIN)
    return found


def test_shifts_are_windows_drawn_uniformly():
    count, image = 2_000, noise(1)[0]
    known = windows(image)
    assert len(known) == (2 * MARGIN + 1) ** 2

    result = run("shifted", image.expand(count, -1, -1, -1).contiguous())
    down, right = zip(*(known[window.numpy().tobytes()] for window in result), strict=True)
    for shifts in (down, right):
        assert set(shifts) == set(range(-MARGIN, MARGIN + 1))
        for shift in set(shifts):
            assert abs(shifts.count(shift) / count - 1 / (2 * MARGIN + 1)) < 0.04


def test_each_shift_is_of_its_own_image():
    shades = torch.arange(16, dtype=torch.uint8).reshape(16, 1, 1, 1).expand(16, 3, *SIDE)
    assert torch.equal(run("shifted", shades), shades)


def test_hole_is_one_grey_square_anywhere():
    result = run("cut_out", torch.zeros(2_000, 3, *SIDE, dtype=torch.uint8))
    found = set()
    for image in result:
        idx = torch.nonzero(image[0])
        (top, left), (bottom, right) = idx.min(0).values.tolist(), idx.max(0).values.tolist()
        assert (image[:, top : bottom + 1, left : right + 1] == 128).all()
        assert int((image != 0).sum()) == 3 * (bottom + 1 - top) * (right + 1 - left)
        for low, high, size in ((top, bottom, SIDE[0]), (left, right, SIDE[1])):
            within = low > 0 and high < size - 1
            length = high + 1 - low
            assert length == HOLE if within else HOLE // 2 <= length <= HOLE
        found.add((top, left, bottom, right))
    assert len(found) > 0.9 * SIDE[0] * SIDE[1]


def test_pixels_outside_the_hole_stay():
    images = noise(200)
    result = run("cut_out", images)
    assert ((result == images) | (result == 128)).all()


def test_photographs_are_shifted_then_cut():
    images, generator = noise(), torch.Generator().manual_seed(3)
    expected = augmentation.cut_out(augmentation.shifted(images, generator), generator)
    assert torch.equal(run("photographs", images, 3), expected)
