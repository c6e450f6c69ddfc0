"""Measuring: every part of a network is run, and its time lands in the right place."""

import time

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from torch.utils.flop_counter import FlopCounterMode

import rnr_gym as rnr
from rnr_gym.backbones import zoo
from rnr_gym.routing import profiles, profiling
from rnr_gym.routing.profiling import ascending, measure
from rnr_gym.routing.sources import open_profile
from tests.fixtures import small
from tests.fixtures.routing import assert_same_arrays

BATCH = 4


@pytest.fixture
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def _macs_for_nanoseconds(monkeypatch):
    """Let a part take one nanosecond for each of its MACs."""

    def counted(runs, repeats, device, progress):
        nanoseconds = []
        for run in runs:
            # The counter reports a multiply and an add as two operations.
            with FlopCounterMode(display=False) as counter:
                run()
            nanoseconds.append(counter.get_total_flops() / 2)
        return np.array(nanoseconds)

    monkeypatch.setattr(profiling, "_medians", counted)


@pytest.mark.parametrize("kind", small.KINDS)
@pytest.mark.parametrize("exits", small.EXITS)
@pytest.mark.usefixtures("_macs_for_nanoseconds")
def test_parts_are_those_of_the_mac_table(kind, exits):
    backbone = small.backbone(kind, exits)
    profile = measure(backbone, BATCH)
    assert_same_arrays(profile.times, backbone.mac_table)
    assert profile.plain == backbone.mac_table.plain
    assert_same_arrays(profile.macs, backbone.mac_table)


@pytest.mark.parametrize("kind", small.KINDS)
def test_measured_times_ascend_by_sub_path(kind):
    backbone = small.backbone(kind)
    profile = measure(backbone, BATCH, repeats=2, progress=False)
    times = profile.times
    first = backbone.first_sub_path
    assert (np.diff(times.layers[:, first:, first:], axis=2) >= 0).all()
    # What costs no MACs because it is not there takes no time.
    assert not times.layers[:, :first].any()
    assert not times.layers[:, :, :first].any()
    assert (times.exits[backbone.mac_table.exits > 0] > 0).all()
    assert not times.exits[backbone.mac_table.exits == 0].any()
    assert times.stem > 0
    assert profile.plain > 0
    assert (profile.batch_size, profile.repeats, profile.threads) == (BATCH, 2, 1)
    assert profile.device == "cpu"
    assert profile.machine


def test_time_is_the_median_for_one_image(monkeypatch):
    # Two readings for each run, with one disturbed run; the first round is a warm-up.
    durations = iter([50, 50, 8, 80, 6, 60, 900, 70])
    now = [0]

    def clock():
        now[0] += next(upcoming)
        return now[0]

    upcoming = iter([step for duration in durations for step in (0, duration)])
    monkeypatch.setattr(time, "perf_counter_ns", clock)
    runs = [lambda: None, lambda: None]
    medians = profiling._medians(runs, 3, small.untrained().device, progress=False)
    assert medians.tolist() == [8, 70]


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 1, 1], [1, 1, 1]),
        ([2, 1, 3], [1.5, 1.5, 3]),
        ([1, 4, 2], [1, 3, 3]),
        ([3, 2, 1], [2, 2, 2]),
        ([1, 5, 4, 0, 9], [1, 3, 3, 3, 9]),
        ([4, 5, 0], [3, 3, 3]),
        ([7], [7]),
    ],
)
def test_falling_times_become_their_mean(measured, expected):
    actual = ascending(np.array(measured, np.float64))
    assert_allclose(actual, expected)
    # The sum of the sub-paths stays.
    assert actual.sum() == pytest.approx(sum(measured))


def test_profile_is_kept_for_environments(cache_dir, monkeypatch):
    monkeypatch.setattr(profiling, "REPEATS", 1)
    measured = rnr.profile("rnr-digits", batch_size=BATCH, progress=False)
    config = zoo.ARCHITECTURES["rnr-digits"].config
    assert profiles.cache_file(config, "cpu", "float32").is_relative_to(cache_dir)
    assert open_profile("rnr-digits", cost="time").digest == measured.digest
    env = rnr.RoutingEnv(cost="time")
    assert env.routing_spec.plain_cost == measured.times.plain


def test_half_precision_has_a_profile_of_its_own(cache_dir, images, monkeypatch):
    monkeypatch.setattr(profiling, "REPEATS", 1)
    backbone = small.backbone("multipath")
    kwargs = {"dataset": images, "backbone": backbone, "cost": "time"}
    rnr.profile(backbone, batch_size=2, progress=False)
    with pytest.raises(FileNotFoundError, match=r"profile\(backbone, dtype=\"bfloat16\"\)"):
        rnr.RoutingEnv(**kwargs, dtype="bfloat16")
    half = rnr.profile(backbone, batch_size=2, dtype="bfloat16", progress=False)
    assert half.dtype == "bfloat16"
    env = rnr.RoutingEnv(**kwargs, dtype="bfloat16")
    assert env.routing_spec.plain_cost == half.times.plain


def test_profile_of_object_is_kept_and_written(cache_dir, images):
    backbone = small.backbone("vgg")
    file = cache_dir / "out" / "vgg.json"
    measured = rnr.profile(backbone, batch_size=2, out=file, progress=False)
    for cost in ("time", str(file)):
        env = rnr.RoutingEnv(dataset=images, backbone=backbone, cost=cost)
        assert_array_equal(env.routing_spec.time_table.layers, measured.times.layers)


@pytest.mark.parametrize(
    ("argument", "kwargs"),
    [
        ("backbone", {"backbone": "nowhere"}),
        ("backbone", {"backbone": 3}),
        ("batch_size", {"batch_size": 0}),
        ("device", {"device": "nowhere"}),
        ("dtype", {"dtype": "auto"}),
    ],
)
def test_profile_rejects(cache_dir, argument, kwargs):
    with pytest.raises(ValueError, match=f"`{argument}` must be"):
        rnr.profile(**{"backbone": "rnr-digits", **kwargs})
    assert not list(cache_dir.iterdir())
