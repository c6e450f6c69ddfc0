"""Variations of photographs: each does what it says, to as many images as it says, and nothing else."""

import pytest
import torch
from torch.nn import functional as F

from rnr_gym.data import augmentation
from rnr_gym.data.augmentation import ALTERED, HOLE, MARGIN

SIDE = (20, 24)
STEPS = ("photographs", "cropped", "altered", "blurred", "noisy", "encoded_again", "cut_out")
EVERY = pytest.mark.parametrize("step", STEPS)


def run(step, images, seed=0):
    return getattr(augmentation, step)(images, torch.Generator().manual_seed(seed))


def noise(count=16, side=SIDE):
    return torch.randint(0, 256, (count, 3, *side), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def flat(value, count=16, side=SIDE):
    return torch.full((count, 3, *side), value, dtype=torch.uint8)


def changed(images, result):
    """bool `(N,)`: which images differ."""
    return (images != result).flatten(1).any(1)


@EVERY
@pytest.mark.parametrize("side", [(32, 32), SIDE, (64, 64)], ids=str)
@pytest.mark.parametrize("count", [1, 16])
def test_images_keep_shape_and_type_and_the_originals_stay(step, side, count):
    images = noise(count, side)
    before = images.clone()
    result = run(step, images)
    assert result.dtype == torch.uint8
    assert result.shape == images.shape
    assert torch.equal(images, before)


@EVERY
def test_a_seed_decides_everything_and_the_global_generator_nothing(step):
    images = noise()
    state = torch.random.get_rng_state()
    once = run(step, images, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(once, run(step, images, 1))
    assert not torch.equal(once, run(step, images, 2))
    torch.random.set_rng_state(state)


@EVERY
def test_images_of_a_batch_vary_each_in_its_own_way(step):
    images = noise(1).expand(64, -1, -1, -1).contiguous()
    assert len({image.numpy().tobytes() for image in run(step, images)}) > 8


def test_two_calls_with_one_generator_differ():
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(augmentation.photographs(noise(), generator), augmentation.photographs(noise(), generator))


def windows(image):
    """Every shifted window of one image with its border reflected, and its mirror image, as bytes: (rows, columns, mirrored)."""
    wide = F.pad(image.float()[None], [MARGIN] * 4, mode="reflect")[0].to(torch.uint8)
    height, width = image.shape[1:]
    found = {}
    for down in range(2 * MARGIN + 1):
        for right in range(2 * MARGIN + 1):
            window = wide[:, down : down + height, right : right + width]
            found[window.numpy().tobytes()] = (down - MARGIN, right - MARGIN, False)
            found[window.flip(2).numpy().tobytes()] = (down - MARGIN, right - MARGIN, True)
    return found


def test_crops_are_shifted_windows_half_of_them_mirrored():
    count, image = 2_000, noise(1)[0]
    known = windows(image)
    assert len(known) == 2 * (2 * MARGIN + 1) ** 2
    crops = run("cropped", image.expand(count, -1, -1, -1).contiguous())
    down, right, mirrored = zip(*(known[crop.numpy().tobytes()] for crop in crops), strict=True)
    assert abs(sum(mirrored) / count - 0.5) < 0.05
    for shifts in (down, right):
        assert set(shifts) == set(range(-MARGIN, MARGIN + 1))
        assert all(abs(shifts.count(shift) / count - 1 / (2 * MARGIN + 1)) < 0.04 for shift in set(shifts))


def test_each_crop_is_of_its_own_image():
    shades = torch.arange(16, dtype=torch.uint8).reshape(16, 1, 1, 1).expand(16, 3, *SIDE)
    assert torch.equal(run("cropped", shades), shades)


def test_a_quarter_is_altered_and_the_rest_stays_as_it_is():
    images = noise(2_000, (8, 8))
    share = changed(images, run("altered", images)).float().mean()
    assert ALTERED - 0.05 < share < ALTERED + 0.03


def test_a_third_of_those_is_blurred_a_third_made_noisy_and_a_third_encoded_again():
    images = noise(3_000, (8, 8))
    counts = []

    def counted(rows, generator):
        counts.append(len(rows))
        return rows

    with pytest.MonkeyPatch.context() as patch:
        for name in ("blurred", "noisy", "encoded_again"):
            patch.setattr(augmentation, name, counted)
        assert torch.equal(run("altered", images), images)
    assert len(counts) == 3
    assert all(abs(count / len(images) - ALTERED / 3) < 0.02 for count in counts)


def test_altered_images_stay_in_their_places():
    shades = (16 * torch.arange(16)).to(torch.uint8).repeat(40).reshape(640, 1, 1, 1).expand(640, 3, 8, 8)
    assert (run("altered", shades).float().mean((1, 2, 3)) - shades.float().mean((1, 2, 3))).abs().max() < 8


@pytest.mark.parametrize("value", [0, 100, 255])
def test_a_blur_leaves_a_flat_image_alone(value):
    assert torch.equal(run("blurred", flat(value)), flat(value))


def test_a_blur_spreads_a_point_to_its_neighbours_and_loses_no_light():
    images = flat(0, 200)
    images[:, 1, 10, 10] = 255
    result = run("blurred", images)
    assert (result[:, [0, 2]] == 0).all()
    around = result[:, 1, 9:12, 9:12].float()
    assert torch.equal(around.sum((1, 2)), result[:, 1].float().sum((1, 2)))
    assert (around.sum((1, 2)) - 255).abs().max() <= 4.5  # nine roundings
    assert torch.equal(around, around.flip(1))
    assert torch.equal(around, around.transpose(1, 2))
    assert (around[:, 1, 1] >= around[:, 0, 1]).all()
    assert around[:, 1, 1].min() < 80
    assert around[:, 1, 1].max() > 230


def test_a_blur_is_the_same_whichever_way_round_the_image_is():
    images = noise()
    for axis in (2, 3):
        assert torch.equal(run("blurred", images.flip(axis)).flip(axis), run("blurred", images))


def test_noise_has_no_bias_and_at_most_eight_levels_of_deviation():
    off = run("noisy", flat(128, 300)).float() - 128
    assert off.mean().abs() < 0.1
    deviation = off.flatten(1).std(1)
    assert deviation.max() < 8.5
    assert deviation.min() < 0.5
    assert 3.5 < deviation.mean() < 4.5


def test_noise_does_not_wrap_around():
    assert run("noisy", flat(0, 100)).max() < 60
    assert run("noisy", flat(255, 100)).min() > 195


def test_encoding_again_stays_near_the_image():
    rows = torch.linspace(0, 255, 32).to(torch.uint8)
    smooth = torch.stack([rows[:, None].expand(32, 32), rows[None].expand(32, 32), rows.flip(0)[:, None].expand(32, 32)]).expand(16, 3, 32, 32)
    result = run("encoded_again", smooth)
    assert changed(smooth, result).any()
    assert (result.float() - smooth.float()).abs().mean((1, 2, 3)).max() < 8
    assert torch.equal(run("encoded_again", flat(128)), flat(128))


def test_a_hole_is_one_grey_square_of_at_most_eight_pixels_about_any_place():
    result = run("cut_out", flat(0, 2_000))
    found = set()
    for image in result:
        places = torch.nonzero(image[0])
        (top, left), (bottom, right) = places.min(0).values.tolist(), places.max(0).values.tolist()
        assert (image[:, top : bottom + 1, left : right + 1] == 128).all()
        assert int((image != 0).sum()) == 3 * (bottom + 1 - top) * (right + 1 - left)
        for low, high, size in ((top, bottom, SIDE[0]), (left, right, SIDE[1])):
            within = low > 0 and high < size - 1
            assert high + 1 - low == HOLE if within else HOLE // 2 <= high + 1 - low <= HOLE
        found.add((top, left, bottom, right))
    assert len(found) > 0.9 * SIDE[0] * SIDE[1]


def test_what_is_outside_the_hole_stays():
    images = noise(200)
    result = run("cut_out", images)
    assert ((result == images) | (result == 128)).all()


def test_a_photograph_goes_through_all_of_them_in_turn():
    images, generator = noise(), torch.Generator().manual_seed(3)
    step_by_step = augmentation.cropped(images, generator)
    step_by_step = augmentation.cut_out(augmentation.altered(step_by_step, generator), generator)
    assert torch.equal(run("photographs", images, 3), step_by_step)
