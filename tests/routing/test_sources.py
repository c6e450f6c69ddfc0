"""What is routed: opened once, checked, and cached on disk where it is a table."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from rnr_gym import storage
from rnr_gym.data import ImageSet
from rnr_gym.routing import route_table, sources
from rnr_gym.routing.live import Live
from rnr_gym.routing.rollout import follow
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.sources import bundled_table, digest_of, open_images, open_source
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small

BACKENDS = pytest.mark.parametrize("backend", ["live", "table"])


@pytest.fixture
def tables_dir(tmp_path, monkeypatch):
    """Where route tables are cached, in a cache of this test only."""
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path))
    return tmp_path / "tables"


def open_table(images, **source_kwargs):
    """The table of a new backbone, which is the same each time."""
    backbone = small.backbone("multipath")
    return open_source(images, backbone=backbone, backend="table", **source_kwargs)


@BACKENDS
def test_same_arguments_give_the_same_source(backend, some_digits):
    kwargs = {"dataset": some_digits, "weights": None, "backend": backend}
    source = open_source(**kwargs)
    assert open_source(**kwargs) is source
    assert open_source(**kwargs, exits=False) is not source


@pytest.mark.parametrize("exits", [True, False])
def test_live_and_table_pose_the_same_problem(exits, some_digits):
    kwargs = {"dataset": some_digits, "weights": None, "exits": exits}
    live = open_source(**kwargs, backend="live")
    table = open_source(**kwargs, backend="table")
    assert isinstance(live, Live)
    assert isinstance(table, RouteTable)
    assert live.spec.digest == table.spec.digest
    assert live.spec.loss_scale == table.spec.loss_scale
    assert_array_equal(live.labels, table.labels)


def test_table_is_built_once_then_read(tables_dir, monkeypatch, images):
    build = route_table.build
    builds = []

    def counted(*args):
        builds.append(args)
        return build(*args)

    monkeypatch.setattr(route_table, "build", counted)
    first = open_table(images)
    # An equal backbone, but another object.
    second = open_table(images)
    assert second is not first
    assert len(builds) == 1
    assert_array_equal(first.summary, second.summary)
    assert len(list(tables_dir.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut off", "of another version"])
def test_unreadable_cached_table_is_built_again(tables_dir, images, damage):
    table = open_table(images)
    (path,) = tables_dir.iterdir()
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        tensors, metadata = storage.load_tensors(path)
        metadata["problem"] = metadata.pop("spec")
        storage.save_tensors(path, tensors, metadata)

    with pytest.raises(ValueError, match="`path`"):
        RouteTable.load(path)
    with pytest.warns(UserWarning, match="is computed again, for it is damaged"):
        again = open_table(images)
    assert_array_equal(again.summary, table.summary)
    assert RouteTable.load(path).origin == table.origin


@pytest.mark.parametrize("change", ["weights", "statistics", "exits", "labels", "pixels"])
def test_cached_table_is_for_one_problem_only(tables_dir, change):
    images = small.images(6)
    open_table(images)

    backbone = small.backbone("multipath")
    other = images
    if change == "weights":
        with torch.no_grad():
            backbone.head.linear.bias[0] += 1e-3
    elif change == "statistics":
        backbone.summary_mean += 1e-3
    elif change == "labels":
        other = ImageSet.of(images.images, (images.labels + 1) % 3, images.classes)
    elif change == "pixels":
        other = ImageSet.of(images.images ^ 1, images.labels, images.classes)

    # The other changes keep exits on.
    exits = change != "exits"
    open_source(other, backbone=backbone, backend="table", exits=exits)
    assert len(list(tables_dir.iterdir())) == 2


def test_cache_dir_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path / "one"))
    assert storage.cache_dir() == tmp_path / "one"

    monkeypatch.delenv("RNR_GYM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert storage.cache_dir() == tmp_path / "rnr_gym"

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.cache_dir() == tmp_path / "home" / ".cache" / "rnr_gym"


def test_tests_keep_out_of_the_users_cache():
    cache_dir = Path(os.environ["RNR_GYM_CACHE"])
    assert cache_dir.name == "rnr_gym_cache"
    assert storage.cache_dir() == cache_dir


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backend", "numpy"),
        ("split", "val"),
        ("dataset", "mnist"),
        ("dataset", small.images(shape=(1, 12, 11), classes=10)),
        ("dataset", small.images(shape=(1, 12, 12), classes=3)),
        ("dataset", ("images", "labels")),
        ("backbone", "resnet"),
        ("backbone", torch.nn.Linear(3, 3)),
        ("weights", "/no/such/file"),
        ("weights", 3),
        ("device", "xpu9z"),
    ],
    ids=[
        "unknown backend",
        "unknown split",
        "unknown dataset",
        "images of another shape",
        "images of other classes",
        "dataset of another type",
        "unknown backbone",
        "backbone of another type",
        "missing weights",
        "weights of another type",
        "unknown device",
    ],
)
def test_open_source_rejects_bad_arguments(name, value):
    kwargs = {"weights": None, name: value}
    with pytest.raises(ValueError, match=f"`{name}`"):
        open_source(**kwargs)


def test_weights_of_own_backbone_are_an_error():
    backbone = small.backbone("multipath")
    with pytest.raises(ValueError, match="`weights` go with a named backbone, got '/a/file'"):
        open_source(backbone=backbone, weights="/a/file")


def test_open_images_gives_those_of_the_source(some_digits):
    assert open_images(some_digits) is some_digits
    images = open_images("digits", "test", exits=False, backend="live")
    assert images is open_source(split="test", weights=None).images


def test_own_table_is_routed_as_it_is(backbone, images):
    spec = RoutingSpec.of(backbone)
    table = route_table.build(backbone, images, spec, progress=False)
    part = table.take(np.array([3, 1]))
    assert open_source(backend=part) is part


def test_digest_of_live_changes_with_its_parts(images):
    def digest(kind="multipath", seed=0, dataset=images, exits=True):
        backbone = small.backbone(kind, seed=seed)
        return digest_of(open_source(dataset, backbone=backbone, exits=exits))

    assert digest() == digest()
    digests = {
        digest(),
        digest(exits=False),
        digest(seed=1),
        digest(dataset=small.images(seed=1)),
        digest(kind="vgg"),
    }
    assert len(digests) == 5


def test_digest_of_table_changes_with_its_origin(images):
    def digest(seed=0, exits=True):
        backbone = small.backbone("multipath", seed=seed)
        table = open_source(images, backbone=backbone, exits=exits, backend="table")
        return digest_of(table)

    assert digest() == digest()
    digests = {digest(), digest(seed=1), digest(exits=False)}
    assert len(digests) == 3


def test_digest_of_cached_table_is_that_of_live(images):
    backbone = small.backbone("multipath")
    live = open_source(images, backbone=backbone)
    assert digest_of(open_table(images)) == digest_of(live)


def test_changed_own_backbone_is_opened_again():
    backbone = small.backbone("multipath")
    kwargs = {"dataset": small.images(8), "backbone": backbone, "backend": "table"}
    before = open_source(**kwargs)
    assert open_source(**kwargs) is before

    # In place, so that the object stays the same.
    with torch.no_grad():
        backbone.head.linear.weight.add_(1.0)
    after = open_source(**kwargs)
    assert after is not before
    assert not np.array_equal(before.loss, after.loss)


def test_own_backbone_is_put_into_evaluation_mode():
    backbone = small.backbone("multipath").train()
    open_source(small.images(8), backbone=backbone)
    assert not backbone.training


def test_own_images_by_split_are_told_apart():
    by_split = {"route": small.images(8), "test": small.images(5)}
    source = open_source(by_split, "test", small.backbone("multipath"))
    assert len(source.labels) == 5

    message = "`split` must be one that `dataset` holds, route, test, got 'train'"
    with pytest.raises(ValueError, match=message):
        open_source(by_split, "train", small.backbone("multipath"))


def test_own_images_have_no_unknown_split():
    with pytest.raises(ValueError, match="`split` must be one of"):
        open_source(small.images(8), "nosuch", small.backbone("multipath"))


class TestDtype:
    """In what the network computes features."""

    @BACKENDS
    def test_half_precision_is_another_source_and_problem_stays(self, backend, some_digits):
        kwargs = {"dataset": some_digits, "weights": None, "backend": backend}
        single = open_source(**kwargs)
        half = open_source(**kwargs, dtype="bfloat16")
        assert half is not single
        assert half.spec.digest == single.spec.digest
        assert digest_of(half) != digest_of(single)

    def test_live_network_runs_in_it(self, some_digits):
        live = open_source(some_digits, weights=None, dtype="bfloat16")
        assert live.network.dtype == torch.bfloat16
        assert live.backbone.dtype == torch.float32

    def test_table_holds_what_runs_live(self, tables_dir, some_digits):
        kwargs = {"dataset": some_digits.take(np.arange(12)), "weights": None, "dtype": "bfloat16"}
        live = open_source(**kwargs)
        table = open_source(**kwargs, backend="table")
        image_idx = np.arange(12)
        full_path = np.full(live.spec.num_layers, live.spec.full_path)
        expected = follow(live.start(image_idx), full_path)
        actual = follow(table.start(image_idx), full_path)
        losses = [
            source.outcome(state, image_idx, image_idx).loss
            for source, state in ((live, expected), (table, actual))
        ]
        np.testing.assert_allclose(*losses, atol=0.05)

    def test_auto_is_the_faster_one(self, some_digits, monkeypatch):
        kwargs = {"dataset": some_digits, "weights": None}
        half = open_source(**kwargs, dtype="bfloat16")
        monkeypatch.setattr(sources, "chosen_dtype", lambda backbone, dtype: "bfloat16")
        assert open_source(**kwargs, dtype="auto") is half

    def test_bundled_table_is_not_taken_for_half_precision(self):
        kwargs = {"dataset": "cifar10", "split": "route", "backbone": "rnr-cifar10-small"}
        assert bundled_table(**kwargs) is not None
        assert bundled_table(**kwargs, dtype="auto") is not None
        assert bundled_table(**kwargs, dtype="bfloat16") is None
