"""Variations of photographs: each does what it says, to every image, and nothing else."""

import pytest
import torch
from torch.nn import functional as F

from rnr_gym.data import augmentation
from rnr_gym.data.augmentation import HOLE, MARGIN

SIDE = (20, 24)
GREY = 128
EVERY = pytest.mark.parametrize("step", ["photographs", "shifted", "cut_out"])


def run(step, images, seed=0):
    """A function of the module, by name, with a seeded generator."""
    generator = torch.Generator().manual_seed(seed)
    return getattr(augmentation, step)(images, generator)


def noise(count=16, side=SIDE):
    """Random images uint8 `(count, 3, H, W)`."""
    generator = torch.Generator().manual_seed(5)
    shape = (count, 3, *side)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def repeated(image, count):
    """`count` copies of an image `(1, 3, H, W)`."""
    return image.expand(count, -1, -1, -1).contiguous()


def as_bytes(image):
    return image.numpy().tobytes()


@EVERY
@pytest.mark.parametrize(
    "side",
    [
        pytest.param((32, 32), id="CIFAR"),
        pytest.param(SIDE, id="oblong"),
        pytest.param((64, 64), id="large"),
    ],
)
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
    once = run(step, images, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)

    torch.manual_seed(99)
    assert torch.equal(once, run(step, images, seed=1))
    assert not torch.equal(once, run(step, images, seed=2))
    torch.random.set_rng_state(state)


@EVERY
def test_step_varies_each_image_by_itself(step):
    result = run(step, repeated(noise(1), 64))
    versions = {as_bytes(image) for image in result}
    assert len(versions) > 8


def test_photographs_differ_between_calls():
    generator = torch.Generator().manual_seed(0)
    first = augmentation.photographs(noise(), generator)
    second = augmentation.photographs(noise(), generator)
    assert not torch.equal(first, second)


def windows(image):
    """Every shifted window of one image with its border reflected: bytes -> (down, right)."""
    padded = F.pad(image.float()[None], [MARGIN] * 4, mode="reflect")
    wide = padded[0].to(torch.uint8)  # (3, H + 2 * MARGIN, W + 2 * MARGIN)
    height, width = image.shape[1:]

    shifts = {}
    for down in range(2 * MARGIN + 1):
        for right in range(2 * MARGIN + 1):
            window = wide[:, down : down + height, right : right + width]
            shifts[as_bytes(window)] = (down - MARGIN, right - MARGIN)
    return shifts


def test_shifts_are_windows_drawn_uniformly():
    count = 2_000
    image = noise(1)
    shift_of = windows(image[0])
    assert len(shift_of) == (2 * MARGIN + 1) ** 2

    result = run("shifted", repeated(image, count))
    shifts = [shift_of[as_bytes(window)] for window in result]
    for axis in (0, 1):
        values = [shift[axis] for shift in shifts]
        assert set(values) == set(range(-MARGIN, MARGIN + 1))
        for value in set(values):
            share = values.count(value) / count
            assert abs(share - 1 / (2 * MARGIN + 1)) < 0.04


def test_shift_stays_within_its_own_image():
    shades = torch.arange(16, dtype=torch.uint8).reshape(16, 1, 1, 1)
    images = shades.expand(16, 3, *SIDE)
    assert torch.equal(run("shifted", images), images)


def test_hole_is_one_grey_square_anywhere():
    result = run("cut_out", torch.zeros(2_000, 3, *SIDE, dtype=torch.uint8))
    holes = set()
    for image in result:
        idx = torch.nonzero(image[0])
        top, left = idx.min(0).values.tolist()
        bottom, right = idx.max(0).values.tolist()
        height = bottom + 1 - top
        width = right + 1 - left

        # Grey throughout, and nothing else is.
        assert (image[:, top : bottom + 1, left : right + 1] == GREY).all()
        assert int((image != 0).sum()) == 3 * height * width
        assert_side_of_hole(top, height, SIDE[0])
        assert_side_of_hole(left, width, SIDE[1])
        holes.add((top, left, bottom, right))

    assert len(holes) > 0.9 * SIDE[0] * SIDE[1]


def assert_side_of_hole(start, length, size):
    """A hole has its full side, unless the border of the image cuts it."""
    within = start > 0 and start + length < size
    if within:
        assert length == HOLE
    else:
        assert HOLE // 2 <= length <= HOLE


def test_pixels_outside_the_hole_stay():
    images = noise(200)
    result = run("cut_out", images)
    assert ((result == images) | (result == GREY)).all()


def test_photographs_are_shifted_then_cut():
    images = noise()
    generator = torch.Generator().manual_seed(3)
    shifted = augmentation.shifted(images, generator)
    expected = augmentation.cut_out(shifted, generator)
    assert torch.equal(run("photographs", images, seed=3), expected)
