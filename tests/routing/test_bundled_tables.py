"""Bundled tables: routed without images, for a named backbone with its own data set."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rnr_gym import data
from rnr_gym.backbones import weights as weight_files
from rnr_gym.backbones import zoo
from rnr_gym.registration import IDS
from rnr_gym.routing import route_table, sources
from rnr_gym.routing.observations import quantisation_steps
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.sources import digest_of, open_images, open_source
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.routing import assert_same_spec

SIZES = {"route": 9, "test": 6}
SPLITS = pytest.mark.parametrize("split", SIZES)
BACKENDS = pytest.mark.parametrize("backend", ["live", "table"])

ENV = "RNR-CIFAR10-Table-v0"
BACKBONE = IDS[ENV]["backbone"]
BUNDLED_SIZES = {"route": 5_000, "test": 10_000}


def add_architecture(monkeypatch, name):
    """Give a small backbone for CIFAR-10 a name."""
    config = small.config("multipath", summary_groups=8)
    architecture = zoo.Architecture(config=config, dataset="cifar10", schedule={})
    monkeypatch.setitem(zoo.ARCHITECTURES, name, architecture)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """By split: the tables that are bundled for the backbone `tiny`, which has no weights file."""
    monkeypatch.setattr(weight_files, "WEIGHTS_DIR", tmp_path / "weights")
    # Without its cache, which would know the weights that were bundled before.
    monkeypatch.setattr(zoo, "_shared", zoo._shared.__wrapped__)
    add_architecture(monkeypatch, "tiny")

    backbone = small.backbone("multipath", summary_groups=8)
    spec = RoutingSpec.of(backbone)
    bundled = {}
    for split, size in SIZES.items():
        table = route_table.build(backbone, small.images(size), spec, progress=False)
        table.save(weight_files.table_file("tiny", split))
        bundled[split] = table
    return bundled


@pytest.fixture
def no_images(tmp_path):
    """Arguments by which no image of CIFAR-10 is there."""
    return {"data_root": str(tmp_path / "nowhere"), "download": False}


def open_tiny(**source_kwargs):
    """What is routed for `tiny` by the backend `table`."""
    kwargs = {"dataset": "cifar10", "backbone": "tiny", "backend": "table"}
    return open_source(**kwargs | source_kwargs)


@SPLITS
def test_bundled_table_needs_no_images(tables, no_images, split):
    table = open_tiny(split=split, **no_images)
    assert isinstance(table, RouteTable)
    for name in ("labels", "summary", "prediction", "loss"):
        expected = getattr(tables[split], name)
        assert_array_equal(getattr(table, name), expected, name)
    assert_same_spec(table.spec, tables[split].spec)


def test_bundled_table_is_read_once(tables):
    table = open_tiny()
    assert open_tiny() is table
    assert sources.bundled_table("cifar10", "route", "tiny") is table
    assert open_tiny(split="test") is not table


def test_bundled_table_keeps_its_origin(tables, monkeypatch):
    add_architecture(monkeypatch, "other")
    table = replace(tables["route"], origin="0123456789ab")
    table.save(weight_files.table_file("other", "route"))
    assert digest_of(open_tiny(backbone="other")) == "0123456789ab"


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "rnr-cifar10"},
        {"backbone": "a/file"},
        {"backbone": small.backbone("multipath", summary_groups=8)},
        {"split": "train"},
        {"exits": False},
        {"weights": None},
        {"weights": "a/file"},
        {"dataset": "digits"},
        {"dataset": small.images()},
    ],
    ids=[
        "another backbone",
        "a backbone's file",
        "an own backbone",
        "another split",
        "exits off",
        "random weights",
        "own weights",
        "another data set",
        "own images",
    ],
)
def test_bundled_table_is_for_its_problem_only(tables, change):
    kwargs = {"dataset": "cifar10", "split": "route", "backbone": "tiny"}
    assert sources.bundled_table(**kwargs) is not None
    assert sources.bundled_table(**kwargs | change) is None


@pytest.mark.parametrize("exits", [True, False])
def test_other_tables_are_built(tables, exits):
    backbone = small.backbone("multipath", summary_groups=8)
    table = open_tiny(dataset=small.images(7), backbone=backbone, exits=exits)
    assert isinstance(table, RouteTable)
    assert len(table.labels) == 7
    assert_same_spec(table.spec, RoutingSpec.of(backbone, exits))


def test_other_tables_need_images(tables, no_images):
    open_tiny(**no_images)
    # With exits off, nothing is bundled: the table has to be built.
    with pytest.raises(FileNotFoundError, match="`data_root` must hold cifar10"):
        open_tiny(exits=False, weights=None, **no_images)


def test_other_tables_need_weights(tables, no_images):
    message = "`weights` of tiny are not bundled, got 'pretrained'"
    with pytest.raises(ValueError, match=message):
        open_tiny(exits=False, **no_images)


@BACKENDS
def test_weights_are_missed_before_images(tables, no_images, backend):
    kwargs = {"dataset": "cifar10", "backbone": BACKBONE, "backend": backend, **no_images}
    message = f"`weights` of {BACKBONE} are not bundled, got 'pretrained'"
    with pytest.raises(ValueError, match=message):
        open_source(**kwargs)
    with pytest.raises(FileNotFoundError, match="`data_root`"):
        open_source(weights=None, **kwargs)


def test_unknown_split_of_table_is_an_error(tables):
    with pytest.raises(ValueError, match="`split` must be one of"):
        open_tiny(split="val")


def test_env_runs_on_bundled_table(tables, no_images):
    env = gym.make(ENV, tradeoff=0.5, backbone="tiny", split="test", **no_images)
    env.reset(options={"index": 4})
    for _ in range(3):
        obs, _, terminated, _, info = env.step(2)
    assert terminated
    assert env.observation_space.contains(obs)

    table = tables["test"]
    answer = table.path_index(info["path"][None])
    assert info["label"] == table.labels[4]
    assert info["prediction"] == table.prediction[answer, 4]


def test_vector_env_runs_on_bundled_table(tables, no_images):
    envs = gym.make_vec(ENV, num_envs=3, backbone="tiny", split="test", **no_images)
    envs.reset(seed=0)
    for _ in range(6):
        _, _, _, _, infos = envs.step(np.full(3, 2))
        assert (infos["index"] < SIZES["test"]).all()


@SPLITS
def test_images_of_table_are_first_of_the_split(tables, small_cifar, split):
    images = open_images("cifar10", split, backbone="tiny", backend="table")
    whole = data.load("cifar10", split)
    size = SIZES[split]
    assert len(images) == size < len(whole)
    assert_array_equal(images.images, whole.images[:size])
    assert_array_equal(images.labels, whole.labels[:size])


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "live"},
        {"exits": False},
        {"weights": None},
        {"backbone": "rnr-cifar10"},
    ],
    ids=str,
)
def test_images_of_other_sources_are_all(tables, small_cifar, change):
    kwargs = {"backbone": "tiny", "backend": "table"}
    images = open_images("cifar10", "route", **kwargs | change)
    assert images is data.load("cifar10", "route")


def test_images_of_unbundled_tables_are_all():
    # The default backbone has no bundled table.
    assert open_images("digits", backend="table") is data.load("digits", "route")


def test_images_may_be_fewer_than_the_table(tables, monkeypatch, small_cifar):
    add_architecture(monkeypatch, "large")
    table = tables["route"].take(np.arange(20) % 9)
    table.save(weight_files.table_file("large", "route"))

    images = open_images("cifar10", "route", backbone="large", backend="table")
    assert len(images) == len(data.load("cifar10", "route")) == 10

    # Routed nonetheless; the picture shows no image.
    env = gym.make(ENV, backbone="large", render_mode="rgb_array")
    env.reset(options={"index": 15})
    assert (env.unwrapped.scene().image == 0).all()
    assert env.render().shape[-1] == 3


def test_images_are_missed_only_when_asked_for(tables, no_images):
    open_tiny(**no_images)
    with pytest.raises(FileNotFoundError, match="`data_root` must hold cifar10"):
        open_images("cifar10", backbone="tiny", backend="table", **no_images)


def test_package_bundles_both_splits_entirely(no_images):
    expected = RoutingSpec.of(zoo.named(BACKBONE)).digest
    total_bytes = 0
    for split, size in BUNDLED_SIZES.items():
        table = open_source("cifar10", split, BACKBONE, backend="table", **no_images)
        assert np.bincount(table.labels).tolist() == [size // 10] * 10
        assert table.spec.digest == expected
        total_bytes += weight_files.table_file(BACKBONE, split).stat().st_size
    assert total_bytes <= 12e6


def test_package_table_env_works_at_once(no_images):
    env = gym.make(ENV, split="test", tradeoff=0.1, **no_images)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)

    # Random weights would be right one time in ten.
    is_right = []
    full_path = env.unwrapped.routing_spec.full_path
    for _ in range(200):
        env.reset()
        for _ in range(3):
            _, _, _, _, info = env.step(full_path)
        is_right.append(info["is_success"])
    assert np.mean(is_right) > 0.7


@pytest.mark.slow
@SPLITS
def test_package_tables_match_live_network(real_data, split):
    table = open_source("cifar10", split, BACKBONE, backend="table")
    idx = np.arange(0, len(table.labels), len(table.labels) // 100)
    known = table.take(idx)

    backbone = zoo.named(BACKBONE)
    images = data.load("cifar10", split, str(real_data), download=False)
    spec = RoutingSpec.of(backbone)
    live = route_table.build(backbone, images.take(idx), spec, progress=False)
    assert_array_equal(known.labels, live.labels)
    assert_array_equal(known.compute, live.compute)

    # Another machine rounds otherwise: an answer may change only where two classes are level.
    assert_allclose(known.loss, live.loss, rtol=0.01, atol=0.01)
    assert (known.prediction == live.prediction).mean() > 0.998
    step = quantisation_steps(known.summary.shape[-1], known.spec.pooled_width)
    apart = np.abs(known.summary - live.summary) / step
    assert apart.max() < 2.5
