"""Tables that come with the package: routed without images, by the name of a backbone."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from rnr_gym import data
from rnr_gym.backbones import zoo
from rnr_gym.registration import IDS
from rnr_gym.routing import observations, route_table, sources
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.sources import digest_of, open_images, open_source
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small

IMAGES = {"route": 9, "test": 6}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of weights with the tables of one backbone, `tiny`."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "weights")
    monkeypatch.setattr(zoo, "_shared", zoo._shared.__wrapped__)
    backbone, tables = small.backbone("multipath", summary_groups=8), {}
    zoo.save(backbone, zoo.bundled("tiny"))
    for split, count in IMAGES.items():
        tables[split] = route_table.build(
            backbone, small.images(count), RoutingSpec.of(backbone), progress=False
        )
        tables[split].save(zoo.bundled("tiny", f"frozen.{split}"))
    return tables


@pytest.fixture
def nowhere(tmp_path):
    """Arguments by which no image is found."""
    return {"data_root": str(tmp_path / "nowhere"), "download": False}


@pytest.mark.parametrize("split", IMAGES)
def test_a_shipped_table_is_routed_without_images(shipped, nowhere, split):
    source = open_source("cifar10", split, "tiny", backend="shipped", **nowhere)
    assert isinstance(source, RouteTable)
    for name in ("labels", "summary", "prediction", "loss"):
        np.testing.assert_array_equal(getattr(source, name), getattr(shipped[split], name))
    assert (
        source.spec.digest == RoutingSpec.of(small.backbone("multipath", summary_groups=8)).digest
    )


def test_the_same_table_is_read_once(shipped):
    one, again = (open_source(backbone="tiny", backend="shipped") for _ in range(2))
    assert one is again
    assert one is sources.bundled_table("tiny", "route")
    assert one is not open_source(split="test", backbone="tiny", backend="shipped")


def test_its_digest_is_that_of_what_it_was_worked_out_from(shipped):
    path = zoo.bundled("other", "frozen.route")
    replace(shipped["route"], origin="0123456789ab").save(path)
    assert digest_of(open_source(backbone="other", backend="shipped")) == "0123456789ab"


@pytest.mark.parametrize("vector", [False, True])
def test_an_environment_runs_on_it(shipped, nowhere, vector):
    arguments = {"backbone": "tiny", "split": "test", **nowhere}
    if vector:
        envs = gym.make_vec("RNR-CIFAR10-Table-v0", num_envs=3, **arguments)
        envs.reset(seed=0)
        for _ in range(6):
            _, _, _, _, info = envs.step(np.full(3, 2))
        assert (info["index"] < IMAGES["test"]).all()
        return
    env = gym.make("RNR-CIFAR10-Table-v0", tradeoff=0.5, **arguments)
    env.reset(options={"index": 4})
    for _ in range(3):
        observation, _, over, _, info = env.step(2)
    assert over
    assert env.observation_space.contains(observation)
    assert info["label"] == shipped["test"].labels[4]
    number = shipped["test"].answers(info["path"][None])
    assert info["prediction"] == shipped["test"].prediction[number, 4]


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({"backbone": "other"}, "other.pretrained.route"),
        ({"split": "train"}, "tiny.pretrained.train"),
        ({"exits": False}, "tiny.pretrained.route without exits"),
        ({"weights": None}, "tiny.None.route"),
        ({"weights": "my/file"}, "tiny.my/file.route"),
        (
            {"backbone": small.backbone("multipath", summary_groups=8)},
            "MultiPathResNet.pretrained.route",
        ),
    ],
    ids=["backbone", "split", "exits", "random weights", "own weights", "own backbone"],
)
def test_what_does_not_ship_is_refused_and_what_does_is_named(shipped, arguments, asked):
    with pytest.raises(
        ValueError,
        match=rf'`backend="shipped"` needs a table that ships, .*got {asked}; "live" and "table" need images',
    ) as told:
        open_source(**{"backbone": "tiny", "backend": "shipped", **arguments})
    for split in IMAGES:
        assert f"tiny.pretrained.{split}" in str(told.value).split("got")[0]


def test_an_unknown_split_is_named_as_such(shipped):
    with pytest.raises(ValueError, match="`split` must be one of"):
        open_source(split="val", backbone="tiny", backend="shipped")


def test_where_no_table_ships_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(
        ValueError, match=r"a table that ships, none so far, got rnr-digits\.pretrained\.route"
    ):
        open_source(backend="shipped")


def test_a_router_that_ships_is_not_named_among_the_tables(shipped):
    zoo.bundled("tiny", "frozen.ppo").write_bytes(b"a router")
    with pytest.raises(ValueError, match="a table that ships, ") as told:
        open_source(backbone="other", backend="shipped")
    assert "tiny.pretrained.route" in str(told.value)
    assert "frozen.ppo" not in str(told.value)


@pytest.mark.parametrize("split", IMAGES)
def test_its_images_are_the_first_of_the_split(shipped, split):
    images = open_images("digits", split, backbone="tiny", backend="shipped")
    whole = data.load("digits", split)
    assert len(images) == IMAGES[split] < len(whole)
    np.testing.assert_array_equal(images.images, whole.images[: IMAGES[split]])
    np.testing.assert_array_equal(images.labels, whole.labels[: IMAGES[split]])


def test_images_are_opened_with_the_backbone_that_a_source_is_opened_with(shipped):
    with pytest.raises(ValueError, match=r"got rnr-digits\.pretrained\.route"):
        open_source("digits", backend="shipped")
    with pytest.raises(ValueError, match=r"got rnr-digits\.pretrained\.route"):
        open_images("digits", backend="shipped")


def test_of_fewer_images_than_the_table_knows_there_are_as_many_as_there_are(shipped, small_cifar):
    few = data.load("cifar10", "route", str(small_cifar))
    shipped["route"].take(np.arange(20) % 9).save(zoo.bundled("twenty", "frozen.route"))
    images = open_images("cifar10", "route", str(small_cifar), backbone="twenty", backend="shipped")
    assert len(images) == len(few) == 10
    env = gym.make(
        "RNR-CIFAR10-Table-v0",
        backbone="twenty",
        data_root=str(small_cifar),
        render_mode="rgb_array",
    )
    env.reset(options={"index": 15})
    assert env.render().shape[-1] == 3  # the image itself is not known


def test_images_that_are_not_there_are_missed_only_when_asked_for(shipped, nowhere):
    open_source("cifar10", backbone="tiny", backend="shipped", **nowhere)
    with pytest.raises(FileNotFoundError, match="`data_root` must hold cifar10"):
        open_images("cifar10", backbone="tiny", backend="shipped", **nowhere)


@pytest.mark.parametrize("backend", ["live", "table"])
def test_weights_that_do_not_ship_are_refused_before_images_are_looked_for(
    shipped, nowhere, backend
):
    with pytest.raises(
        ValueError, match="`weights` of rnr-cifar10-small are not shipped, got 'frozen'"
    ):
        open_source("cifar10", backbone="rnr-cifar10-small", backend=backend, **nowhere)
    with pytest.raises(FileNotFoundError, match="`data_root`"):
        open_source(
            "cifar10", backbone="rnr-cifar10-small", weights=None, backend=backend, **nowhere
        )


ENV = "RNR-CIFAR10-Table-v0"
BACKBONE = IDS[ENV]["backbone"]


def test_the_package_has_a_table_of_all_images_of_both_splits(nowhere):
    sizes = {"route": 5_000, "test": 10_000}
    for split, count in sizes.items():
        table = open_source("cifar10", split, BACKBONE, backend="shipped", **nowhere)
        assert np.bincount(table.labels).tolist() == [count // 10] * 10
        assert table.spec.digest == RoutingSpec.of(zoo.named(BACKBONE)).digest
    assert sum(zoo.bundled(BACKBONE, f"frozen.{split}").stat().st_size for split in sizes) <= 12e6


def test_its_id_works_at_once_where_there_are_no_images(nowhere):
    env = gym.make(ENV, split="test", tradeoff=0.1, **nowhere)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    right = [play(env, [env.unwrapped.routing.full_path] * 3) for _ in range(200)]
    assert np.mean(right) > 0.7


def play(env, path):
    """Whether an episode that takes a path ends with the right answer."""
    env.reset()
    for sub_path in path:
        *_, info = env.step(sub_path)
    return info["is_success"]


@pytest.mark.slow
@pytest.mark.parametrize("split", IMAGES)
def test_the_tables_say_what_the_live_network_does(real_data, split):
    table = open_source("cifar10", split, BACKBONE, backend="shipped")
    rows = np.arange(0, len(table.labels), len(table.labels) // 100)
    images = data.load("cifar10", split, str(real_data), download=False).take(rows)
    backbone = zoo.named(BACKBONE)
    live = route_table.build(backbone, images, RoutingSpec.of(backbone), progress=False)
    known = table.take(rows)

    np.testing.assert_array_equal(known.labels, live.labels)
    np.testing.assert_array_equal(known.compute, live.compute)
    # Another machine rounds otherwise: an answer may change only where two classes are level.
    np.testing.assert_allclose(known.loss, live.loss, rtol=0.01, atol=0.01)
    assert (known.prediction == live.prediction).mean() > 0.998
    step = observations.steps(known.summary.shape[-1], known.spec.facts["pooled"])
    assert (np.abs(known.summary - live.summary) / step).max() < 2.5
