"""Learners as routers: they find what can be found, come back from disk, and go on where they were killed."""

import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from rnr_gym import agents, storage
from rnr_gym.agents import AGENTS, RECIPES, FitConfig, sb3_router
from rnr_gym.agents.recipes import TUNED, recipe_for
from rnr_gym.agents.sb3_router import CHECKPOINT, Bar, CheckpointCallback, RoutingFeatures, learner
from rnr_gym.data import DATASETS
from rnr_gym.envs.routing import observation_space
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.routing.rollout import route
from rnr_gym.sb3 import vec_env
from tests import small
from tests.agents import BEST, DEALT, KINDS, paper

CONTRIB = ("maskable-ppo", "qr-dqn")
EVERY = pytest.mark.parametrize("name", [*RECIPES])
QUICK = {
    "ppo": replace(RECIPES["ppo"], num_envs=64, learning_rate=3e-3, arguments={**RECIPES["ppo"].arguments, "ent_coef": 0.01}),
    "dqn": replace(
        RECIPES["dqn"],
        num_envs=32,
        learning_rate=3e-3,
        arguments={**RECIPES["dqn"].arguments, "batch_size": 256, "learning_starts": 1_000, "target_update_interval": 300},
    ),
}
"""The recipes with a higher learning rate and fewer episodes side by side: eight images need no more than some seconds."""


@pytest.fixture(autouse=True)
def _early(monkeypatch):
    """DQN and QR-DQN begin to learn after 256 steps, so that short fits learn something, and from small batches."""
    for name in ("dqn", "qr-dqn"):
        arguments = {**RECIPES[name].arguments, "learning_starts": 256, "batch_size": 32}
        monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], arguments=arguments))


def fitted(name, table, steps, seed=0, **more):
    """A recipe's router, fitted to a table."""
    if name in CONTRIB:
        pytest.importorskip("sb3_contrib")
    fit_config = FitConfig("RNR-v0", {"backend": table}, seed, steps, progress=False, **more)
    return sb3_router.fit(fit_config, name)


def observations(spec, count=200, seed=0):
    """Random observations, each at some layer."""
    rng = np.random.default_rng(seed)
    box = observation_space(spec)
    seen = rng.uniform(box.low, box.high, (count, spec.layout.size)).astype(np.float32)
    seen[:, spec.layout.layer] = np.eye(spec.num_layers)[rng.integers(0, spec.num_layers, count)]
    return seen


def weights(router):
    """What the router has learnt, by name."""
    return router.state()[0]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("name", "steps"), [("ppo", 100_000), ("dqn", 80_000)])
def test_a_learner_finds_the_optimum_that_is_known_on_paper(monkeypatch, name, steps):
    # On paper nothing but the raw summary tells images apart.
    monkeypatch.setitem(RECIPES, name, replace(QUICK[name], summary_scale=1.0))
    table = paper()
    router = fitted(name, table, steps, tradeoffs=(0.1, 3.0))
    for tradeoff, (most, ways) in BEST.items():
        assert table.returns(tradeoff).max(0).mean() == pytest.approx(most)
        found = evaluate(table, router, tradeoff)
        assert found.path.tolist() == [ways[KINDS[kind]] for kind in DEALT]
        mean = (found.correct - tradeoff * (found.macs - found.router_macs) / table.spec.plain_macs).mean()
        assert mean == pytest.approx(most)


def test_learning_starts_near_the_full_path():
    recipe = replace(RECIPES["ppo"], full_path_bias=3.0)
    problem = paper().spec
    env = vec_env("RNR-v0", 32, 0, backend=paper(), tradeoff=(0.1, 2.0))
    policy = learner(recipe, env, problem.layout, seed=0).policy
    seen = torch.from_numpy(observations(problem))
    probabilities = policy.get_distribution(seen).distribution.probs.detach()
    expected = np.exp(3.0) / (np.exp(3.0) + problem.num_paths - 1)
    np.testing.assert_allclose(probabilities[:, problem.full_path], expected, atol=0.02)
    env.close()


@EVERY
def test_a_router_acts_the_same_after_it_was_saved_and_restored(tmp_path, name):
    table = paper()
    router = fitted(name, table, 1024)
    agents.save(router, tmp_path / "router", {"agent": name, "problem": table.spec.digest})
    again, facts = agents.load(tmp_path / "router", table.spec)
    assert facts["agent"] == name
    assert same(weights(router), weights(again))
    seen = observations(table.spec)
    actions = router.predict(seen)[0]
    assert actions.tolist() == again.predict(seen)[0].tolist()
    assert actions.dtype == np.int64
    assert actions.shape == (200,)


@EVERY
def test_a_seed_gives_one_router(name):
    table = paper()
    one, again, other = (fitted(name, table, 1024, seed) for seed in (3, 3, 4))
    assert same(weights(one), weights(again))
    assert not same(weights(one), weights(other))


@EVERY
def test_more_steps_give_another_router(name):
    table = paper()
    assert not same(weights(fitted(name, table, 1024)), weights(fitted(name, table, 2048)))


class Killed:
    """Stands in for the progress bar: notes where learning begins, and kills it at a step."""

    def __init__(self, at):
        self.at, self.begun = at, []

    def __call__(self, *parts):
        told = self

        class Noting(Bar):
            def _on_training_start(self):
                told.begun.append((self.num_timesteps, self.model._total_timesteps))
                super()._on_training_start()

            def _on_step(self):
                if told.at is not None and self.num_timesteps >= told.at:
                    raise KeyboardInterrupt
                return super()._on_step()

        return Noting(*parts)


@pytest.fixture
def kill(monkeypatch):
    """A checkpoint every 1,024 steps, and learning that can be killed."""
    killed = Killed(None)
    monkeypatch.setattr(sb3_router, "CheckpointCallback", partial(CheckpointCallback, every=1024))
    monkeypatch.setattr(sb3_router, "Bar", killed)
    return killed


@pytest.mark.parametrize("name", ["ppo", "dqn", "a2c"])
def test_a_killed_fit_goes_on_from_its_last_checkpoint_and_finishes(tmp_path, kill, name):
    table, kill.at = paper(), 2_600
    with pytest.raises(KeyboardInterrupt):
        fitted(name, table, 4096, folder=tmp_path)
    tensors, facts = storage.load_tensors(tmp_path / CHECKPOINT)
    assert facts["steps"] == 2048
    kill.at = None
    router = fitted(name, table, 4096, folder=tmp_path)
    assert kill.begun == [(0, 4096), (2048, 4096)]
    assert storage.load_tensors(tmp_path / CHECKPOINT)[1]["steps"] == 4096
    learnt = {name.removeprefix("policy/"): tensor for name, tensor in tensors.items() if name.startswith("policy/")}
    assert learnt.keys() == weights(router).keys()
    assert not same(learnt, weights(router))


def test_a_fit_killed_before_it_has_learnt_anything_goes_on_too(tmp_path, kill, monkeypatch):
    late = {**RECIPES["dqn"].arguments, "learning_starts": 3_000}
    monkeypatch.setitem(RECIPES, "dqn", replace(RECIPES["dqn"], arguments=late))
    table, kill.at = paper(), 1_500
    with pytest.raises(KeyboardInterrupt):
        fitted("dqn", table, 4096, folder=tmp_path)
    kill.at = None
    fitted("dqn", table, 4096, folder=tmp_path)
    assert kill.begun == [(0, 4096), (1024, 4096)]


@pytest.mark.parametrize("name", ["ppo", "dqn", "a2c"])
def test_a_checkpoint_holds_weights_and_optimiser(tmp_path, kill, name):
    table, kill.at = paper(), 2_600
    with pytest.raises(KeyboardInterrupt):
        fitted(name, table, 4096, folder=tmp_path)
    tensors, facts = storage.load_tensors(tmp_path / CHECKPOINT)
    model = learner(RECIPES[name], vec_env("RNR-v0", RECIPES[name].num_envs, 9, backend=table), table.spec.layout, 9)
    CheckpointCallback(tmp_path, facts["identity"]).resume(model)
    found, _ = storage.flattened(model.get_parameters())
    assert model.num_timesteps == 2048
    assert any("optimizer/state" in key for key in tensors)
    assert same(dict(found), tensors)


def test_finished_steps_are_not_learnt_again(tmp_path, kill):
    table = paper()
    fitted("ppo", table, 2048, folder=tmp_path)
    router = fitted("ppo", table, 2048, folder=tmp_path)
    assert kill.begun == [(0, 2048)]
    assert same({f"policy/{name}": tensor for name, tensor in weights(router).items()}, policy_in(tmp_path))


def policy_in(folder):
    return {name: tensor for name, tensor in storage.load_tensors(folder / CHECKPOINT)[0].items() if name.startswith("policy/")}


@pytest.mark.parametrize(("name", "steps", "rate"), [("a2c", 2048, None), ("ppo", 4096, None), ("ppo", 2048, 1.0)], ids=["recipe", "steps", "values"])
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, kill, monkeypatch, name, steps, rate):
    table = paper()
    fitted("ppo", table, 2048, folder=tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    if rate:
        monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], learning_rate=rate))
    with pytest.raises(ValueError, match="`folder` must hold a run of the same settings"):
        fitted(name, table, steps, folder=tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_blind_learners_checkpoint_is_not_a_seeing_ones(tmp_path, kill):
    table = paper()
    fit_config = FitConfig("RNR-v0", {"backend": table}, 0, 2048, folder=tmp_path, progress=False)
    sb3_router.fit_blind(fit_config, "ppo")
    with pytest.raises(ValueError, match="`folder` must hold a run of the same settings"):
        sb3_router.fit(fit_config, "ppo")


def test_without_a_folder_nothing_is_kept(tmp_path, kill, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted("ppo", paper(), 2048)
    assert list(tmp_path.iterdir()) == []


def test_learning_curves_lie_in_the_folder(tmp_path):
    fitted("ppo", paper(), 1024, folder=tmp_path)
    assert len(list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))) == 1


@EVERY
def test_a_learner_is_made_as_its_recipe_says(name):
    if name in CONTRIB:
        pytest.importorskip("sb3_contrib")
    recipe, table = RECIPES[name], paper()
    model = learner(recipe, vec_env("RNR-v0", recipe.num_envs, 0, backend=table), table.spec.layout, seed=0)
    assert f"{type(model).__module__.split('.')[0]}:{type(model).__name__}" == recipe.algorithm
    assert model.gamma == 1.0
    assert model.lr_schedule(1.0) == pytest.approx(recipe.learning_rate)
    assert model.lr_schedule(0.5) == pytest.approx(0.55 * recipe.learning_rate)
    assert model.lr_schedule(0.0) == pytest.approx(0.1 * recipe.learning_rate)
    assert isinstance(model.policy.optimizer, torch.optim.Adam)
    assert {group["weight_decay"] for group in model.policy.optimizer.param_groups} == {recipe.weight_decay}
    assert recipe.net[0] in {parameter.shape[0] for parameter in model.policy.parameters()}


def test_the_tradeoff_is_seen_on_a_logarithmic_scale_and_all_else_as_it_is():
    spec = paper().spec
    seen = torch.from_numpy(observations(spec, 4))
    seen[:, -1] = torch.tensor([0.01, 0.1, 1.0, 0.0])
    extractor = RoutingFeatures(observation_space(spec), spec.layout, summary_scale=0.1)
    shown = extractor(seen)
    assert shown.shape == (4, extractor.features_dim)
    torch.testing.assert_close(shown[:, -2], torch.tensor([-1.0, 0.0, 1.0, -2.0]))  # nothing is below 0.001
    torch.testing.assert_close(shown[:, -1], seen[:, -1])
    rest = shown[:, -2 - spec.layout.tradeoff.start : -2]
    raw = spec.layout.summary.confidence.start
    torch.testing.assert_close(rest[:, :raw], 0.1 * seen[:, :raw])
    assert torch.equal(rest[:, raw:], seen[:, raw:-1])


def test_a_maskable_learners_router_takes_only_what_a_layer_offers():
    pytest.importorskip("sb3_contrib")
    backbone = small.backbone("multipath", "one exit")
    arguments = {"dataset": small.images(), "backbone": backbone, "backend": "table"}
    fit_config = FitConfig("RNR-v0", arguments, 0, 1024, progress=False)
    spec = backbone.spec()
    seen = observations(spec, 500)
    layers = seen[:, spec.layout.layer].argmax(1)
    chosen = {name: sb3_router.fit(fit_config, name).predict(seen, deterministic=False)[0] for name in ("maskable-ppo", "ppo")}
    assert spec.valid[layers, chosen["maskable-ppo"]].all()
    assert not spec.valid[layers, chosen["ppo"]].all()


def test_without_sb3_contrib_its_learners_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    fit_config = FitConfig("RNR-v0", {"backend": paper()}, 0, 1024, progress=False)
    for name in CONTRIB:
        with pytest.raises(ValueError, match=r"sb3-contrib; install rnr-gym\[contrib\]"):
            AGENTS[name].fit(fit_config)


def test_a_router_is_given_one_observation_an_image_and_needs_no_state():
    table = paper()
    router = fitted("ppo", table, 1024)
    walk = route(table.start(np.arange(8)), table.spec, router, 0.5)
    assert walk.done.all()
    assert router.predict(observations(table.spec, 1))[1] is None


@EVERY
def test_a_data_set_may_have_a_recipe_of_its_own_and_all_others_take_the_common_one(monkeypatch, name):
    own = replace(RECIPES[name], net=(7, 5))
    monkeypatch.setitem(TUNED, "cifar10", {name: own})
    monkeypatch.setitem(TUNED, "cifar100", {})
    assert recipe_for(name, "cifar10") is own
    for other in ("cifar100", "digits", "nosuch", None, small.images(6), {"route": small.images(6)}):
        assert recipe_for(name, other) is RECIPES[name]


def test_recipes_of_their_own_belong_to_known_learners_and_data_sets():
    assert TUNED.keys() <= DATASETS.keys()
    for recipes in TUNED.values():
        assert recipes.keys() <= RECIPES.keys()
        for name, recipe in recipes.items():
            assert (recipe.algorithm, recipe.policy) == (RECIPES[name].algorithm, RECIPES[name].policy)  # by which its router is restored


def test_a_router_is_fitted_by_the_recipe_of_its_data_set_and_comes_back_with_its_network(tmp_path, monkeypatch):
    own, table = replace(RECIPES["ppo"], net=(8, 4), num_envs=32), paper()
    monkeypatch.setitem(TUNED, "digits", {"ppo": own})  # what RNR-v0 routes by name
    router = fitted("ppo", table, 256)
    assert router.recipe is own
    agents.save(router, tmp_path / "router", {"agent": "ppo"})
    monkeypatch.delitem(TUNED, "digits")
    again = agents.load(tmp_path / "router", table.spec)[0]
    assert again.recipe.net == (8, 4)
    assert again.recipe == replace(RECIPES["ppo"], net=(8, 4))
    assert same(weights(router), weights(again))
    assert router.predict(observations(table.spec))[0].tolist() == again.predict(observations(table.spec))[0].tolist()
    assert fitted("ppo", table, 1024).recipe is RECIPES["ppo"]


def untrained(table, name="ppo", **changes):
    """A router that has learnt nothing."""
    recipe = replace(RECIPES[name], **changes)
    return sb3_router.Sb3Router(table.spec, learner(recipe, vec_env("RNR-v0", 32, 0, backend=table), table.spec.layout, 0).policy, name, recipe)


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_what_a_router_keeps_beside_its_weights_are_its_recipes_name_and_network(name):
    assert untrained(paper(), name, net=(24,)).state()[1] == {"recipe": name, "net": [24], "summary_scale": RECIPES[name].summary_scale}


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_a_recipe_may_change_its_network_without_making_old_routers_useless(monkeypatch, name):
    table = paper()
    tensors, facts = untrained(table, name).state()
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], net=(50, 40)))
    again = sb3_router.restore(table.spec, tensors, facts)
    assert same(tensors, weights(again))
    assert again.state()[1] == facts


def test_a_file_says_nothing_of_what_is_imported():
    table = paper()
    tensors, facts = untrained(table).state()
    again = sb3_router.restore(table.spec, tensors, {**facts, "algorithm": "os:system", "policy": {"activation_fn": "os.system"}})
    assert again.recipe.algorithm == RECIPES["ppo"].algorithm
    with pytest.raises(KeyError):
        sb3_router.restore(table.spec, tensors, {**facts, "recipe": "os:system"})


def test_weights_that_do_not_fit_the_network_they_name_are_refused():
    table = paper()
    tensors, facts = untrained(table).state()
    with pytest.raises(RuntimeError, match="size mismatch"):
        sb3_router.restore(table.spec, tensors, {**facts, "net": [17]})
