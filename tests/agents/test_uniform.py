"""The random router."""

import numpy as np
import pytest

from rnr_gym.agents import FitConfig, uniform
from rnr_gym.agents.uniform import UniformRouter
from rnr_gym.routing.rollout import route
from tests import small
from tests.agents import drawn, paper


def observations(spec, each=3000):
    """`each` observations at every layer."""
    layers = np.repeat(np.arange(spec.num_layers), each)
    seen = np.zeros((len(layers), spec.layout.size), np.float32)
    seen[np.arange(len(layers)), spec.layout.layer.start + layers] = 1.0
    return seen, layers


@pytest.mark.parametrize("exits", small.EXITS)
@pytest.mark.parametrize("on", [True, False])
def test_every_valid_sub_path_has_the_same_chance_and_no_other_has_any(exits, on):
    spec = small.backbone("multipath", exits).spec(on)
    seen, layers = observations(spec)
    actions, state = UniformRouter(spec, 0).predict(seen, "kept")
    for layer, valid in enumerate(spec.valid):
        share = np.bincount(actions[layers == layer], minlength=spec.num_paths) / 3000
        assert (share[~valid] == 0).all()
        np.testing.assert_allclose(share[valid], 1 / valid.sum(), atol=0.045)  # five standard deviations
    assert state == "kept"


def test_a_seed_gives_one_router():
    spec = paper().spec
    seen, _ = observations(spec, 50)
    one, again, other = (UniformRouter(spec, seed) for seed in (5, 5, 6))
    first = one.predict(seen)[0].tolist()
    assert first == again.predict(seen)[0].tolist() != other.predict(seen)[0].tolist()
    assert first != one.predict(seen)[0].tolist()  # it goes on drawing


def test_it_draws_whether_or_not_it_is_to_be_deterministic():
    spec = paper().spec
    seen, _ = observations(spec, 50)
    calm, wild = UniformRouter(spec, 5), UniformRouter(spec, 5)
    assert calm.predict(seen, deterministic=True)[0].tolist() == wild.predict(seen, deterministic=False)[0].tolist()
    assert len(set(calm.predict(seen)[0].tolist())) == 3


def test_its_paths_are_whole_whatever_is_masked():
    table = drawn(0, exits=False)
    walk = route(table.start(np.arange(30)), table.spec, UniformRouter(table.spec, 1), 0.3)
    assert set(walk.path.ravel().tolist()) == {1, 2}


def test_it_is_fitted_by_keeping_the_seed_and_comes_back_with_it():
    table = paper()
    router = uniform.fit(FitConfig("RNR-v0", {"backend": table}, seed=11))
    again = UniformRouter.restore(table.spec, *router.state())
    seen, _ = observations(table.spec, 50)
    assert router.predict(seen)[0].tolist() == again.predict(seen)[0].tolist() == UniformRouter(table.spec, 11).predict(seen)[0].tolist()
