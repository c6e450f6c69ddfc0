"""The paper's router: known targets, the optimum on paper, and resuming."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rnr_gym.agents import FitConfig, rnr_dqn
from rnr_gym.agents.base import CHECKPOINT
from rnr_gym.agents.rnr_dqn import CONFIG, Config, Learner
from rnr_gym.agents.rnr_dqn_replay import Episodes
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.routing.rollout import decision_macs
from tests.fixtures.paper_problem import BEST, paper, spec
from tests.fixtures.routers import same_tensors

QUICK = Config(
    steps=30_000,
    num_envs=32,
    embedding=16,
    hidden=16,
    batch_size=64,
    learning_starts=200,
    target_every=20,
    learning_rate=1e-2,
)
SHORT = replace(QUICK, steps=2048)


def config_of(table, **kwargs):
    return FitConfig(env="RNR-v0", kwargs={"backend": table}, progress=False, **kwargs)


def mean_return(router, tradeoff):
    """The mean return on paper, without what the router itself costs."""
    outcomes = evaluate(paper(), router, tradeoff)
    macs = outcomes.macs - outcomes.router_macs
    return (outcomes.correct - tradeoff * macs / 100).mean()


def episodes(spec_inputs=1):
    """One episode of two decisions and one that exits at once, at λ = 2."""
    return Episodes(
        inputs=torch.rand(2, 2, spec_inputs, generator=torch.Generator().manual_seed(0)),
        tradeoff=torch.full((2, 2), 2.0),
        action=torch.tensor([[2, 1], [0, 0]]),
        task=torch.tensor([[0.0, 1.0], [0.5, 0.0]]),
        charge=torch.tensor([[0.25, 0.5], [0.125, 0.0]]),
        length=torch.tensor([2, 1]),
    )


def targets_of(learner):
    """The targets of `episodes`, with the values that choose."""
    batch = episodes(len(learner.online.columns))
    with torch.no_grad():
        values = learner.online.along(batch.inputs)
        return learner.targets(batch, values), values, learner.target.along(batch.inputs)


# Targets


@pytest.mark.parametrize("n_step", [2, 5])
def test_target_to_the_end_is_the_return(n_step):
    targets, _, _ = targets_of(Learner(spec(), replace(CONFIG, n_step=n_step, cut=False), seed=0))
    # -0.5 then 1 - 1; the exit earns 0.5 - 0.25.
    assert targets[0, :, 0].tolist() == [-0.5, 0.0]
    assert targets[1, 0, 0].item() == 0.25


def test_target_of_two_heads_to_the_end():
    learner = Learner(spec(), replace(CONFIG, n_step=2, cut=False, two_heads=True), seed=0)
    targets, _, _ = targets_of(learner)
    assert targets[0].tolist() == [[1.0, -0.75], [1.0, -0.5]]
    assert targets[1, 0].tolist() == [0.5, -0.125]


def test_one_step_target_is_what_target_network_says_of_online_choice():
    learner = Learner(spec(), replace(CONFIG, n_step=1), seed=0)
    other = rnr_dqn.q_network(spec(), CONFIG, seed=1)
    learner.target.load_state_dict(other.state_dict())
    targets, values, target_values = targets_of(learner)

    best = values[0, 1, :, 0].argmax()
    expected = -0.5 + target_values[0, 1, best, 0]
    assert torch.isclose(targets[0, 0, 0], expected)
    # Nothing follows the last decision, or an exit.
    assert targets[0, 1, 0].item() == 0.0
    assert targets[1, 0, 0].item() == 0.25


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_target_is_cut_where_the_best_sub_path_was_not_taken(chosen):
    learner = Learner(spec(), replace(CONFIG, n_step=2), seed=0)
    batch = episodes(len(learner.online.columns))
    values = torch.zeros(2, 2, 3, 1)
    values[:, 1, chosen] = 1.0
    with torch.no_grad():
        targets = learner.targets(batch, values)
        target_values = learner.target.along(batch.inputs)

    # The episode took sub-path 1 at its second decision, which earned nothing.
    following = 0.0 if chosen == 1 else target_values[0, 1, chosen, 0].item()
    assert np.isclose(targets[0, 0, 0].item(), -0.5 + following)


# Charges and exploration


def test_macs_are_charged_or_groups_counted():
    layer = np.array([0, 0, 1])
    actions = np.array([0, 1, 2])
    rewards = np.array([[0.0, -0.02], [0.0, -0.25], [1.0, -0.5]])
    by_macs = Learner(spec(), CONFIG, seed=0)
    by_groups = Learner(spec(), replace(CONFIG, charge="groups"), seed=0)
    assert by_macs._charge(layer, actions, rewards).tolist() == [0.02, 0.25, 0.5]
    # The full path costs a half at each of the two layers, exit and cheapest sub-path nothing.
    assert by_groups._charge(layer, actions, rewards).tolist() == [0.0, 0.0, 0.5]


@pytest.mark.parametrize(("steps", "epsilon"), [(0, 1.0), (250, 0.55), (500, 0.1), (900, 0.1)])
def test_epsilon_falls_linearly_then_stays(steps, epsilon):
    learner = Learner(spec(), replace(CONFIG, steps=1000), seed=0)
    learner.steps = steps
    assert np.isclose(learner.epsilon, epsilon)


# Fitting


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_step": 1}, {"cut": False}, {"two_heads": True, "n_step": 1}, {"recurrent": False}],
    ids=["default", "one step", "not cut", "two heads", "no memory"],
)
def test_solves_problem_on_paper(changes):
    router = rnr_dqn.fit(config_of(paper()), replace(QUICK, **changes))
    for tradeoff, (best, _) in BEST.items():
        assert mean_return(router, tradeoff) > best - 0.03


@pytest.mark.parametrize("reward", ["accuracy", "cross_entropy"])
@pytest.mark.parametrize("charge", ["macs", "groups"])
def test_fits_with_every_reward_and_charge(reward, charge):
    config = replace(QUICK, steps=16_000, reward=reward, charge=charge)
    router = rnr_dqn.fit(config_of(paper()), config)
    # Wrong answers cost one nat, so the best path of an easy image is the same.
    assert mean_return(router, 0.2) > 0.5


def test_memory_is_carried_from_call_to_call():
    router = rnr_dqn.fit(config_of(paper()), SHORT)
    obs = np.zeros((3, spec().layout.size), np.float32)
    obs[:, spec().layout.layer.start] = 1.0
    _, (memory,) = router.predict(obs)
    assert memory.shape == (3, 16)
    assert np.abs(memory).sum() > 0

    # The same second observation after another first one is read differently.
    later = np.zeros_like(obs)
    later[:, spec().layout.layer.start + 1] = 1.0
    _, (with_memory,) = router.predict(later, (memory,))
    _, (without,) = router.predict(later)
    assert not np.array_equal(with_memory, without)


def test_decision_counts_encoder_cell_and_decoder():
    router = rnr_dqn.fit(config_of(paper()), SHORT)
    inputs = len(router.network.columns)
    # A gated recurrent unit has three products for what comes in, and three for its state.
    assert decision_macs(router, spec()) == inputs * 16 + 6 * 16 * 16 + 16 * 3


@pytest.mark.parametrize(("name", "changes"), rnr_dqn.ABLATIONS.items())
def test_ablation_differs_in_one_switch(name, changes):
    router = rnr_dqn.fit_ablation(replace(config_of(paper()), steps=512), name)
    assert len(changes) == 1
    assert router.config == replace(CONFIG, steps=512, **changes)


def test_data_sets_have_their_own_configurations():
    assert rnr_dqn.config_for("digits") is CONFIG
    assert rnr_dqn.config_for("cifar10") is rnr_dqn.CIFAR
    assert rnr_dqn.config_for(paper()) is CONFIG


# Checkpoints


def test_interrupted_fit_resumes_and_ends_at_same_step(tmp_path, monkeypatch):
    monkeypatch.setattr(rnr_dqn, "CHECKPOINT_EVERY", 5)
    updates = []

    def interrupted(learner, batch):
        if len(updates) == 12:
            raise KeyboardInterrupt
        updates.append(learner.steps)
        update(learner, batch)

    update = Learner._update
    monkeypatch.setattr(Learner, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rnr_dqn.fit(config_of(paper(), run_dir=tmp_path), SHORT)
    monkeypatch.setattr(Learner, "_update", update)

    learner = Learner(spec(), SHORT, seed=0)
    learner.resume(tmp_path / CHECKPOINT)
    assert (learner.updates, learner.steps) == (10, updates[9])
    router = rnr_dqn.fit(config_of(paper(), run_dir=tmp_path), SHORT)
    assert not same_tensors(router.state_dict()[0], learner.online.state_dict())


def test_checkpoint_of_other_configuration_is_refused(tmp_path):
    learner = Learner(spec(), SHORT, seed=0)
    learner.save(tmp_path / CHECKPOINT)
    other = Learner(spec(), replace(SHORT, n_step=1), seed=0)
    with pytest.raises(ValueError, match="`run_dir` must hold a run with the same configuration"):
        other.resume(tmp_path / CHECKPOINT)


def test_nothing_is_resumed_where_there_is_no_checkpoint(tmp_path):
    learner = Learner(spec(), SHORT, seed=0)
    learner.resume(tmp_path / CHECKPOINT)
    assert learner.steps == 0
