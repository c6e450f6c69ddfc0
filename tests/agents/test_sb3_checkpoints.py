"""Checkpoints of learners: an interrupted fit resumes, by the same configuration only."""

from dataclasses import replace
from functools import partial

import pytest

from rnr_gym import storage
from rnr_gym.agents import RECIPES, sb3
from rnr_gym.agents.base import CHECKPOINT
from rnr_gym.agents.sb3 import CheckpointCallback, ProgressBar
from tests.fixtures.paper_problem import paper
from tests.fixtures.routers import fit_agent, new_model, same_tensors

LEARNERS = pytest.mark.parametrize("name", ["ppo", "dqn", "a2c"])

pytestmark = pytest.mark.usefixtures("early_learning")


class Interruption:
    """Creates progress bars that note where learning starts, and interrupt it at a step.

    Attributes:
        step: where to interrupt; None for nowhere.
        starts: for each time that learning started, its first step and its last.
    """

    def __init__(self):
        self.step = None
        self.starts = []

    def __call__(self, *args):
        return InterruptingBar(self, *args)


class InterruptingBar(ProgressBar):
    """A progress bar of an `Interruption`."""

    def __init__(self, interruption, *args):
        super().__init__(*args)
        self.interruption = interruption

    def _on_training_start(self):
        self.interruption.starts.append((self.num_timesteps, self.model._total_timesteps))
        super()._on_training_start()

    def _on_step(self):
        step = self.interruption.step
        if step is not None and self.num_timesteps >= step:
            raise KeyboardInterrupt
        return super()._on_step()


@pytest.fixture
def interruption(monkeypatch):
    """Learning that can be interrupted, with a checkpoint every 1,024 steps."""
    interruption = Interruption()
    monkeypatch.setattr(sb3, "CheckpointCallback", partial(CheckpointCallback, every=1024))
    monkeypatch.setattr(sb3, "ProgressBar", interruption)
    return interruption


def fit_interrupted(interruption, name, run_dir, step):
    """Start a fit of 4,096 steps, and interrupt it at a step."""
    interruption.step = step
    with pytest.raises(KeyboardInterrupt):
        fit_agent(name, paper(), 4096, run_dir=run_dir)
    interruption.step = None


def policy_tensors(tensors):
    """What a checkpoint holds of the policy, by its names there."""
    prefix = "policy/"
    policy = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            policy[name.removeprefix(prefix)] = tensor
    return policy


@LEARNERS
def test_interrupted_fit_resumes_and_finishes(tmp_path, interruption, name):
    fit_interrupted(interruption, name, tmp_path, step=2_600)
    tensors, metadata = storage.load_tensors(tmp_path / CHECKPOINT)
    assert metadata["steps"] == 2048

    router = fit_agent(name, paper(), 4096, run_dir=tmp_path)
    assert interruption.starts == [(0, 4096), (2048, 4096)]
    _, metadata = storage.load_tensors(tmp_path / CHECKPOINT)
    assert metadata["steps"] == 4096

    # It has learned since.
    before = policy_tensors(tensors)
    after, _ = router.state_dict()
    assert before.keys() == after.keys()
    assert not same_tensors(before, after)


def test_fit_resumes_before_it_has_learned(tmp_path, interruption, monkeypatch):
    dqn = RECIPES["dqn"]
    late = replace(dqn, kwargs={**dqn.kwargs, "learning_starts": 3_000})
    monkeypatch.setitem(RECIPES, "dqn", late)
    fit_interrupted(interruption, "dqn", tmp_path, step=1_500)
    fit_agent("dqn", paper(), 4096, run_dir=tmp_path)
    assert interruption.starts == [(0, 4096), (1024, 4096)]


@LEARNERS
def test_checkpoint_holds_weights_and_optimiser(tmp_path, interruption, name):
    fit_interrupted(interruption, name, tmp_path, step=2_600)
    tensors, metadata = storage.load_tensors(tmp_path / CHECKPOINT)
    assert any("optimizer/state" in key for key in tensors)

    # A model with other weights becomes the one that was interrupted.
    table = paper()
    model = new_model(RECIPES[name], table.spec, seed=9, backend=table)
    CheckpointCallback(tmp_path, metadata["identity"]).resume(model)
    resumed, _ = storage.flattened(model.get_parameters())
    assert model.num_timesteps == 2048
    assert same_tensors(resumed, tensors)


def test_finished_steps_are_not_learned_again(tmp_path, interruption):
    fit_agent("ppo", paper(), 2048, run_dir=tmp_path)
    router = fit_agent("ppo", paper(), 2048, run_dir=tmp_path)
    assert interruption.starts == [(0, 2048)]
    stored, _ = storage.load_tensors(tmp_path / CHECKPOINT)
    learned, _ = router.state_dict()
    assert same_tensors(learned, policy_tensors(stored))


@pytest.mark.parametrize(
    ("name", "steps", "changes"),
    [
        ("a2c", 2048, {}),
        ("ppo", 4096, {}),
        ("ppo", 2048, {"learning_rate": 1.0}),
    ],
    ids=["learner", "steps", "values"],
)
def test_checkpoint_of_other_run_is_rejected(
    tmp_path, interruption, monkeypatch, name, steps, changes
):
    fit_agent("ppo", paper(), 2048, run_dir=tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], **changes))
    with pytest.raises(ValueError, match="`run_dir` must hold a run with the same configuration"):
        fit_agent(name, paper(), steps, run_dir=tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_checkpoint_of_blind_learner_is_rejected(tmp_path, interruption):
    fit_agent("blind", paper(), 2048, run_dir=tmp_path)
    with pytest.raises(ValueError, match="`run_dir` must hold a run with the same configuration"):
        fit_agent("ppo", paper(), 2048, run_dir=tmp_path)


def test_fit_without_run_dir_writes_nothing(tmp_path, interruption, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit_agent("ppo", paper(), 2048)
    assert list(tmp_path.iterdir()) == []


def test_run_dir_holds_learning_curves(tmp_path):
    fit_agent("ppo", paper(), run_dir=tmp_path)
    events = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    assert len(list(events)) == 1
