"""What is routed: opened once, checked, and cached on disk where it is a table."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from rnr_gym import storage
from rnr_gym.routing import route_table, sources
from rnr_gym.routing.live import Live
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.sources import open_images, open_source
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small


def test_the_same_arguments_give_the_same_object(some_digits):
    for backend in ("live", "table"):
        arguments = {"dataset": some_digits, "weights": None, "backend": backend}
        assert open_source(**arguments) is open_source(**arguments)
        assert open_source(**arguments) is not open_source(**arguments, exits=False)


def test_a_live_source_and_a_table_pose_the_same_problem(some_digits):
    for exits in (True, False):
        live, table = (
            open_source(dataset=some_digits, weights=None, exits=exits, backend=backend)
            for backend in ("live", "table")
        )
        assert isinstance(live, Live)
        assert isinstance(table, RouteTable)
        assert live.spec.digest == table.spec.digest
        assert live.spec.loss_scale == table.spec.loss_scale
        np.testing.assert_array_equal(live.labels, table.labels)


def test_a_table_is_built_once_and_then_read(tmp_path, monkeypatch, images):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path))
    backbone = small.backbone("multipath")
    built = []
    monkeypatch.setattr(
        route_table,
        "build",
        lambda *parts, build=route_table.build: built.append(1) or build(*parts, progress=False),
    )
    spec = RoutingSpec.of(backbone)
    first, again = (sources._table(backbone, images, spec) for _ in range(2))
    assert built == [1]
    np.testing.assert_array_equal(first.summary, again.summary)
    assert len(list((tmp_path / "tables").iterdir())) == 1


@pytest.mark.parametrize("change", ["weights", "labels", "pixels", "exits", "statistics"])
def test_a_table_of_something_else_is_never_taken_from_the_cache(tmp_path, monkeypatch, change):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path))
    backbone, images = small.backbone("multipath"), small.images(6)
    sources._table(backbone, images, RoutingSpec.of(backbone))
    other, different, spec = small.backbone("multipath"), images, RoutingSpec.of(backbone)
    if change == "weights":
        with torch.no_grad():
            other.head.linear.bias[0] += 1e-3
    elif change == "statistics":
        other.summary_mean += 1e-3
    elif change == "exits":
        spec = RoutingSpec.of(other, exits=False)
    elif change == "labels":
        different = type(images).of(images.images, (images.labels + 1) % 3, images.classes)
    else:
        different = type(images).of(images.images ^ 1, images.labels, images.classes)
    sources._table(other, different, spec)
    assert len(list((tmp_path / "tables").iterdir())) == 2


def test_the_cache_stands_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path / "one"))
    assert storage.cache_dir() == tmp_path / "one"
    monkeypatch.delenv("RNR_GYM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert storage.cache_dir() == tmp_path / "rnr_gym"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.cache_dir() == tmp_path / "home" / ".cache" / "rnr_gym"


def test_tests_keep_out_of_the_users_cache():
    assert Path(os.environ["RNR_GYM_CACHE"]).name == "rnr_gym_cache"
    assert storage.cache_dir() == Path(os.environ["RNR_GYM_CACHE"])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("backend", {"backend": "numpy"}),
        ("split", {"split": "val"}),
        ("dataset", {"dataset": "mnist"}),
        ("backbone", {"backbone": "resnet"}),
        ("weights", {"weights": "/no/such/file"}),
        ("dataset", {"dataset": small.images(shape=(1, 12, 11), classes=10)}),
        ("dataset", {"dataset": small.images(shape=(1, 12, 12), classes=3)}),
    ],
)
def test_what_cannot_be_opened_is_refused(name, arguments):
    with pytest.raises(ValueError, match=f"`{name}`"):
        open_source(**{"weights": None, **arguments})


def test_images_are_those_of_the_source(some_digits):
    assert open_images(some_digits) is some_digits
    assert (
        open_images("digits", "test", exits=False, backend="live")
        is open_source(split="test", weights=None).images
    )


def test_a_table_of_ones_own_is_routed_as_it_is(backbone, images):
    table = route_table.build(backbone, images, RoutingSpec.of(backbone), progress=False).take(
        np.array([3, 1])
    )
    assert open_source(backend=table) is table


def test_the_digest_of_a_source_changes_with_what_it_would_answer(images):
    def digest(network=None, part=images, **arguments):
        return sources.digest_of(
            open_source(part, backbone=network or small.backbone("multipath"), **arguments)
        )

    assert digest() == digest()
    others = [
        digest(exits=False),
        digest(small.backbone("multipath", seed=1)),
        digest(part=small.images(seed=1)),
        digest(small.backbone("vgg")),
    ]
    assert len({digest(), *others}) == 5
    tables = [
        digest(backend="table"),
        digest(small.backbone("multipath", seed=1), backend="table"),
        digest(backend="table", exits=False),
    ]
    assert len(set(tables)) == 3


@pytest.mark.parametrize("on", [True, False])
def test_a_live_source_runs_exits_only_where_they_are_on(on):
    backbone = small.backbone("multipath")
    walk = Live(backbone, small.images(4), RoutingSpec.of(backbone, on)).start(np.arange(4))
    assert walk.traversal.exits == ({0, 1, 2} if on else set())
    assert not walk.traversal.logits.requires_grad


def test_an_own_backbone_whose_weights_change_gives_another_source():
    backbone, images = small.backbone("multipath"), small.images(8)
    before = open_source(images, backbone=backbone, backend="table")
    assert open_source(images, backbone=backbone, backend="table") is before
    with torch.no_grad():
        backbone.head.linear.weight.add_(1.0)
    after = open_source(images, backbone=backbone, backend="table")
    assert after is not before
    assert not np.array_equal(before.loss, after.loss)


def test_an_own_backbone_is_put_into_evaluation_mode():
    backbone = small.backbone("multipath").train()
    open_source(small.images(8), backbone=backbone)
    assert not backbone.training


def test_image_sets_by_split_are_told_apart():
    sets = {"route": small.images(8), "test": small.images(5)}
    assert len(open_source(sets, "test", small.backbone("multipath")).labels) == 5
    with pytest.raises(
        ValueError, match="`split` must be one that `dataset` holds, route, test, got 'train'"
    ):
        open_source(sets, "train", small.backbone("multipath"))
    with pytest.raises(ValueError, match="`split` must be one of"):
        open_source(small.images(8), "nosuch", small.backbone("multipath"))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"backbone": torch.nn.Linear(3, 3)}, "backbone"),
        ({"dataset": ("images", "labels")}, "dataset"),
        ({"weights": 3}, "weights"),
        ({"device": "xpu9z"}, "device"),
        ({"backbone": small.backbone("multipath"), "weights": "/no/such/file"}, "weights"),
    ],
    ids=["backbone", "dataset", "weights", "device", "weights of an own backbone"],
)
def test_wrong_things_are_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        open_source(**arguments)
