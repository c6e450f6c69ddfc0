"""Profiles: files, what they fit, and what is charged where one is given."""

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rnr_gym.backbones import weights, zoo
from rnr_gym.routing import profiles
from rnr_gym.routing.profiles import Profile
from rnr_gym.routing.sources import digest_of, open_profile, open_source
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.profiles import keep, profile_of
from tests.fixtures.routing import assert_same_arrays

BACKENDS = pytest.mark.parametrize("backend", ["live", "table"])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def profile(backbone):
    return profile_of(backbone)


def change_dtype(content):
    content["dtype"] = "float16"


def change_threads(content):
    content["threads"] = 0


def change_machine(content):
    content["machine"] = ["a", "b"]


def change_order(content):
    content["nanoseconds"]["layers"][1][2][3] = 0


def change_sign(content):
    content["nanoseconds"]["stem"] = -1


def change_fraction(content):
    content["nanoseconds"]["head"][-1] = 0.5


def change_shape(content):
    content["nanoseconds"]["exits"].pop()


def change_to_nothing(content):
    content["nanoseconds"] = None


def remove_macs(content):
    del content["macs"]


def remove_layers(content):
    for table in ("macs", "nanoseconds"):
        content[table]["layers"] = []
        content[table]["exits"] = []


def test_profile_survives_file(profile, tmp_path):
    path = tmp_path / "profile.json"
    profile.save(path)
    loaded = Profile.load(path)
    assert_same_arrays(loaded.times, profile.times)
    assert_same_arrays(loaded.macs, profile.macs)
    assert loaded.to_json() == profile.to_json()
    assert loaded.digest == profile.digest
    assert loaded.times.layers.dtype == np.int64


@pytest.mark.parametrize(
    "change",
    [
        change_dtype,
        change_threads,
        change_machine,
        change_order,
        change_sign,
        change_fraction,
        change_shape,
        change_to_nothing,
        remove_macs,
        remove_layers,
    ],
)
def test_changed_file_is_refused(profile, tmp_path, change):
    path = tmp_path / "profile.json"
    content = profile.to_json()
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"that `rnr-gym profile` wrote, got '.*profile.json'"):
        Profile.load(path)


def test_digest_changes_with_times_and_machine(backbone, profile):
    content = profile.to_json()
    content["nanoseconds"]["stem"] += 1
    assert Profile.from_json(content).digest != profile.digest
    content = profile.to_json()
    content["machine"] = "another"
    assert Profile.from_json(content).digest != profile.digest
    assert profile.digest in str(profile)
    assert "made up" in str(profile)


@pytest.mark.parametrize("exits", [True, False])
@BACKENDS
def test_cost_time_charges_the_profile(backend, exits, images, backbone):
    profile = keep(backbone)
    kwargs = {"dataset": images, "backbone": backbone, "exits": exits, "backend": backend}
    source = open_source(**kwargs, cost="time")
    spec = source.spec
    assert spec.plain_cost == profile.times.plain
    # The problem is the same but for its costs.
    without = open_source(**kwargs).spec
    assert_array_equal(spec.valid, without.valid)
    assert_same_arrays(spec.mac_table, without.mac_table)
    assert spec.digest != without.digest

    paths = small.paths(spec, 24)
    state = source.start(np.arange(24))
    for sub_paths in paths.T:
        state = state.step(sub_paths.astype(np.int64))
    nanoseconds = np.array([nanoseconds_of(profile, path, exits) for path in paths])
    assert_array_equal(spec.charged(state), nanoseconds)
    assert_array_equal(without.charged(state), state.macs)


def nanoseconds_of(profile, path, exits):
    """What is charged for a path, added up here."""
    times = profile.times
    # With the glance, the stem runs only for images that stay.
    total = times.exits[0, 0] if exits else times.stem
    prev_sub_path = len(times.head) - 1
    for layer, sub_path in enumerate(path):
        if sub_path <= 0:
            return total
        if layer == 0 and exits:
            total += times.stem
        total += times.layers[layer, prev_sub_path, sub_path]
        if layer + 1 == len(path):
            total += times.head[sub_path]
        elif exits:
            total += times.exits[layer + 1, sub_path]
        prev_sub_path = sub_path
    return total


@BACKENDS
def test_same_profile_gives_the_same_source(backend, images, backbone):
    kwargs = {"dataset": images, "backbone": backbone, "backend": backend}
    keep(backbone)
    source = open_source(**kwargs, cost="time")
    assert open_source(**kwargs, cost="time") is source
    # Measured again.
    other = keep(backbone, seed=1)
    replaced = open_source(**kwargs, cost="time")
    assert replaced is not source
    assert replaced.spec.plain_cost == other.times.plain
    assert digest_of(replaced) != digest_of(source)
    assert open_source(**kwargs, cost="macs").spec.time_table is None


def test_live_and_table_have_the_same_digest(images, backbone):
    keep(backbone)
    kwargs = {"dataset": images, "backbone": backbone, "cost": "time"}
    live = open_source(**kwargs)
    table = open_source(**kwargs, backend="table")
    assert digest_of(live) == digest_of(table)
    assert live.spec.digest == table.spec.digest
    assert digest_of(live) != digest_of(open_source(images, backbone=backbone))


def test_profile_and_its_file_charge_the_same(images, backbone, profile, tmp_path):
    path = tmp_path / "elsewhere.json"
    profile.save(path)
    digests = set()
    for cost in (profile, str(path), path):
        source = open_source(images, backbone=backbone, cost=cost)
        digests.add(source.spec.digest)
    assert digests == {RoutingSpec.of(backbone).timed(profile.times).digest}


def test_users_table_charges_the_profile(images, backbone, profile):
    table = open_source(images, backbone=backbone, backend="table")
    timed = open_source(backend=table, cost=profile)
    assert timed.spec.plain_cost == profile.times.plain
    assert timed.summary is table.summary


def test_weights_share_a_profile(tmp_path):
    profile = keep(zoo.named("rnr-digits", None))
    file = tmp_path / "digits.safetensors"
    weights.save(zoo.from_config(zoo.ARCHITECTURES["rnr-digits"].config, seed=3), file)
    for kwargs in (
        {"backbone": "rnr-digits"},
        {"backbone": "rnr-digits", "weights": None},
        {"backbone": str(file)},
        {"backbone": "rnr-digits", "weights": str(file)},
    ):
        assert open_profile(**kwargs, cost="time").digest == profile.digest


@pytest.mark.parametrize(
    ("backbone_of_user", "command"),
    [
        ("rnr-cifar10", "run `rnr-gym profile rnr-cifar10`"),
        (small.untrained(), r"call `rnr_gym.profile\(backbone\)`"),
    ],
    ids=["name", "object"],
)
def test_missing_profile_says_what_to_do(backbone_of_user, command):
    # Neither weights nor images are there to be opened.
    with pytest.raises(FileNotFoundError, match=rf"`cost=\"time\"` needs a profile .*: {command}"):
        open_source("cifar10", backbone=backbone_of_user, cost="time")


@BACKENDS
def test_profile_of_other_backbone_is_refused(backend, images, backbone):
    profile = profile_of(small.backbone("vgg"))
    with pytest.raises(ValueError, match="got one of another backbone: its plain network has"):
        open_source(images, backbone=backbone, backend=backend, cost=profile)


def test_profile_of_other_exits_is_refused(images, backbone):
    with pytest.raises(ValueError, match="got one of another backbone"):
        profile_of(small.backbone("multipath", "glance")).check_fits(RoutingSpec.of(backbone))


def test_damaged_cache_is_refused(images, backbone):
    path = profiles.cache_file(backbone.config, "cpu", "float32")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(ValueError, match="must be JSON, and is damaged"):
        open_source(images, backbone=backbone, cost="time")


def test_devices_and_dtypes_have_profiles_of_their_own(backbone):
    def file(device, dtype="float32"):
        return profiles.cache_file(backbone.config, device, dtype)

    assert len({file("cpu"), file("cuda"), file("cpu", "bfloat16")}) == 3
    assert file("cuda:0") == file("cuda:1")


def test_time_needs_a_dtype_by_name(images, backbone):
    with pytest.raises(ValueError, match="`dtype` must be float32 or bfloat16 with"):
        open_source(images, backbone=backbone, dtype="auto", cost="time")
