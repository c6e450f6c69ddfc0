"""The random router."""

import numpy as np
import pytest

from rnr_gym.agents import FitConfig, uniform
from rnr_gym.agents.uniform import UniformRouter
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.rollout import route
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import small
from tests.fixtures.paper_problem import drawn, paper


def observations(spec, per_layer=50):
    """As many observations at every layer, all of them blank."""
    layers = np.repeat(np.arange(spec.num_layers), per_layer)
    layout = spec.layout
    obs = np.zeros((len(layers), layout.size), np.float32)
    obs[np.arange(len(layers)), layout.layer.start + layers] = 1.0
    return obs


def predict(router, obs, **kwargs):
    """The router's sub-paths, as a list."""
    actions, _ = router.predict(obs, **kwargs)
    return actions.tolist()


@pytest.mark.parametrize("exits", small.EXITS)
@pytest.mark.parametrize("use_exits", [True, False])
def test_valid_sub_paths_are_equally_frequent(exits, use_exits):
    spec = RoutingSpec.of(small.backbone("multipath", exits), use_exits)
    obs = observations(spec, per_layer=3000)
    layers = layers_of(spec.layout, obs)
    router = UniformRouter(spec, seed=0)
    actions, state = router.predict(obs, "kept")

    for layer, valid in enumerate(spec.valid):
        counts = np.bincount(actions[layers == layer], minlength=spec.num_paths)
        share = counts / 3000
        assert (share[~valid] == 0).all()
        # Five standard deviations.
        np.testing.assert_allclose(share[valid], 1 / valid.sum(), atol=0.045)
    assert state == "kept"


def test_seed_determines_the_draws():
    spec = paper().spec
    obs = observations(spec)
    router = UniformRouter(spec, seed=5)
    first = predict(router, obs)
    assert predict(UniformRouter(spec, seed=5), obs) == first
    assert predict(UniformRouter(spec, seed=6), obs) != first
    # The draws continue from one call to the next.
    assert predict(router, obs) != first


def test_deterministic_predictions_are_random_too():
    spec = paper().spec
    obs = observations(spec)
    router = UniformRouter(spec, seed=5)
    same_seed = UniformRouter(spec, seed=5)
    actions = predict(router, obs, deterministic=True)
    assert predict(same_seed, obs, deterministic=False) == actions
    assert set(predict(router, obs)) == {0, 1, 2}


def test_paths_are_whole_without_exits():
    table = drawn(0, exits=False)
    router = UniformRouter(table.spec, seed=1)
    start = table.start(np.arange(30))
    state = route(start, table.spec, router, 0.3)
    assert set(state.path.ravel().tolist()) == {1, 2}


def test_fit_and_state_dict_keep_the_seed():
    table = paper()
    obs = observations(table.spec)
    router = uniform.fit(FitConfig("RNR-v0", {"backend": table}, seed=11))
    restored = UniformRouter.from_state_dict(table.spec, *router.state_dict())
    expected = predict(UniformRouter(table.spec, seed=11), obs)
    assert predict(router, obs) == expected
    assert predict(restored, obs) == expected
