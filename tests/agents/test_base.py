"""What a `FitConfig` opens."""

from dataclasses import FrozenInstanceError

import pytest

from rnr_gym.agents import FitConfig
from rnr_gym.routing import route_table
from rnr_gym.routing.live import Live
from rnr_gym.routing.path_tree import num_prefixes
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures.paper_problem import paper


@pytest.fixture
def table_size(images, backbone):
    """Prefixes x images of the shared network's table."""
    return num_prefixes(RoutingSpec.of(backbone)) * len(images)


def test_source_is_table_where_it_fits(monkeypatch, images, backbone, table_size):
    monkeypatch.setattr(route_table, "LIMIT", table_size)
    fit_config = FitConfig("RNR-v0", {"dataset": images, "backbone": backbone})
    assert isinstance(fit_config.source("route"), RouteTable)
    assert fit_config.table("route") is fit_config.source("route")
    assert fit_config.has_table("route")


def test_source_is_live_where_table_is_too_large(monkeypatch, images, backbone, table_size):
    monkeypatch.setattr(route_table, "LIMIT", table_size - 1)
    fit_config = FitConfig("RNR-v0", {"dataset": images, "backbone": backbone})
    assert isinstance(fit_config.source("route"), Live)
    assert fit_config.table("route") is None
    assert not fit_config.has_table("route")


def test_source_kwargs_include_given_kwargs(images, backbone):
    kwargs = {
        "dataset": images,
        "backbone": backbone,
        "exits": False,
        "backend": "live",
    }
    fit_config = FitConfig("RNR-v0", kwargs)
    assert fit_config.source_kwargs("test") == {**kwargs, "split": "test"}
    assert not fit_config.source("route").spec.valid[:, 0].any()


def test_dtype_that_every_process_would_measure_is_refused():
    with pytest.raises(ValueError, match="`dtype` must be float32 or bfloat16"):
        FitConfig("RNR-v0", {"dtype": "auto"})
    fit_config = FitConfig("RNR-v0", {"dtype": "bfloat16"})
    assert fit_config.source_kwargs("test")["dtype"] == "bfloat16"


def test_given_table_is_the_source():
    table = paper()
    assert FitConfig("RNR-v0", {"backend": table}).table("route") is table


def test_source_rejects_unregistered_id():
    with pytest.raises(ValueError, match=r"`env` must be one of RNR-Digits-v0, .*, got 'RNR-v1'"):
        FitConfig("RNR-v1").source("route")


def test_fit_config_is_immutable():
    fit_config = FitConfig("RNR-v0")
    with pytest.raises(FrozenInstanceError):
        fit_config.seed = 1
