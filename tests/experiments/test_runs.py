"""A fitted router in a folder: started once, resumed, finished, loaded."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from rnr_gym import agents, data, storage
from rnr_gym.agents import FitConfig, sb3
from rnr_gym.agents.base import CHECKPOINT
from rnr_gym.agents.sb3 import CheckpointCallback
from rnr_gym.classifier import CONFIG_FILE, ROUTER_FILE, RoutedClassifier
from rnr_gym.experiments import runs
from rnr_gym.experiments.evaluation import evaluate, measure_curve
from rnr_gym.routing.rollout import decision_macs
from rnr_gym.routing.sources import digest_of
from tests.fixtures import small
from tests.fixtures.digits import ENV, load_other, use_few_digits
from tests.fixtures.files import snapshot

CONFIG = {"agent": "ppo", "steps": 100, "tradeoffs": [0.01, 2.0]}
FINISHED_BY = "done"
FIT_CONFIG = FitConfig(ENV, steps=1024, progress=False)


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch):
    use_few_digits(monkeypatch)


@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty"])
def test_start_in_new_or_empty_dir(tmp_path, exists):
    run_dir = tmp_path / "one" / "two"
    if exists:
        run_dir.mkdir(parents=True)
    runs.start_or_resume(run_dir, CONFIG, FINISHED_BY)
    assert [file.name for file in run_dir.iterdir()] == [CONFIG_FILE]
    assert json.loads((run_dir / CONFIG_FILE).read_text()) == CONFIG


def test_resume_with_same_config_changes_nothing(tmp_path):
    runs.start_or_resume(tmp_path, CONFIG, FINISHED_BY)
    (tmp_path / "half").write_text("work")
    before = snapshot(tmp_path)

    # The order of the entries is no difference.
    runs.start_or_resume(tmp_path, dict(reversed(CONFIG.items())), FINISHED_BY)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({**CONFIG, "steps": 200}, "steps"),
        ({**CONFIG, "steps": 200, "agent": "dqn"}, "agent, steps"),
        ({**CONFIG, "seed": 1}, "seed"),
        ({"agent": "ppo", "steps": 100}, "tradeoffs"),
    ],
    ids=["changed", "two changed", "added", "missing"],
)
def test_resume_rejects_changed_config(tmp_path, config, names):
    runs.start_or_resume(tmp_path, CONFIG, FINISHED_BY)
    before = snapshot(tmp_path)
    message = (
        "`out` must be resumed with the settings that it was started with, "
        f"got .*, where {names} differ; choose another"
    )
    with pytest.raises(ValueError, match=message):
        runs.start_or_resume(tmp_path, config, FINISHED_BY)
    assert snapshot(tmp_path) == before


def test_start_rejects_finished_work(tmp_path):
    runs.start_or_resume(tmp_path, CONFIG, FINISHED_BY)
    (tmp_path / FINISHED_BY).write_text("all")
    before = snapshot(tmp_path)
    message = r"`out` must be a new folder or unfinished work, got .*, which is finished"
    with pytest.raises(FileExistsError, match=message):
        runs.start_or_resume(tmp_path, CONFIG, FINISHED_BY)
    assert snapshot(tmp_path) == before


def test_start_rejects_foreign_dir(tmp_path):
    (tmp_path / "thesis.tex").write_text("five years")
    before = snapshot(tmp_path)
    message = r"`out` must be a new folder, got .*, which exists and holds something else"
    with pytest.raises(FileExistsError, match=message):
        runs.start_or_resume(tmp_path, CONFIG, FINISHED_BY)
    assert snapshot(tmp_path) == before


def test_start_rejects_file_as_dir(tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(FileExistsError, match=r"`out` must be a new folder, got"):
        runs.start_or_resume(file, CONFIG, FINISHED_BY)
    assert file.read_text() == "text"


@pytest.mark.parametrize(
    ("agent", "fit_config"),
    [
        ("dqn", FIT_CONFIG),
        ("ppo", replace(FIT_CONFIG, seed=1)),
        ("ppo", replace(FIT_CONFIG, kwargs={"exits": False})),
        ("ppo", replace(FIT_CONFIG, tradeoffs=(0.1, 1.0))),
        ("ppo", replace(FIT_CONFIG, steps=2048)),
        ("ppo", replace(FIT_CONFIG, env="RNR-Digits-Channels-v0")),
    ],
    ids=["agent", "seed", "kwargs", "tradeoffs", "steps", "env"],
)
def test_identity_differs_with_config(agent, fit_config):
    identity = runs.identity("ppo", FIT_CONFIG)
    other = runs.identity(agent, fit_config)
    assert json.dumps(identity) != json.dumps(other)


def test_identity_is_json():
    identity = runs.identity("ppo", FIT_CONFIG)
    assert json.loads(json.dumps(identity)) == identity


def test_identity_ignores_run_dir(tmp_path):
    elsewhere = replace(FIT_CONFIG, run_dir=tmp_path)
    assert runs.identity("ppo", elsewhere) == runs.identity("ppo", FIT_CONFIG)


@pytest.mark.parametrize("agent", ["static", "confidence", "random", "ppo"])
def test_fit_writes_run_that_loads(tmp_path, agent):
    run_dir = tmp_path / "run"
    path = runs.fit(agent, FIT_CONFIG, run_dir)
    assert path == run_dir / ROUTER_FILE
    assert json.loads((run_dir / CONFIG_FILE).read_text()) == runs.identity(agent, FIT_CONFIG)

    source = FIT_CONFIG.source("route")
    _, metadata = storage.load_tensors(path)
    assert metadata["problem"] == source.spec.digest
    assert metadata["source"] == digest_of(source)

    run = runs.load(run_dir)
    assert run.agent == agent
    assert run.fit_config.env == ENV
    assert run.fit_config.seed == 0
    assert run.fit_config.steps == 1024
    assert run.fit_config.tradeoffs == FIT_CONFIG.tradeoffs

    # The file has the router that was fitted: the same one as without a folder.
    fitted = agents.AGENTS[agent].fit(FIT_CONFIG)
    for tradeoff in (0.02, 0.5):
        loaded_paths = evaluate(source, run.router, tradeoff).path
        fitted_paths = evaluate(source, fitted, tradeoff).path
        np.testing.assert_array_equal(loaded_paths, fitted_paths)


def test_fit_measures_curve_on_route(tmp_path):
    runs.fit("confidence", FIT_CONFIG, tmp_path)
    run = runs.load(tmp_path)
    assert run.curve == measure_curve(FIT_CONFIG.source("route"), run.router)


def test_fit_measures_no_curve_of_static(tmp_path):
    runs.fit("static", FIT_CONFIG, tmp_path)
    assert runs.load(tmp_path).curve is None


def test_fit_rejects_finished_run(tmp_path):
    runs.fit("static", FIT_CONFIG, tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match="which is finished"):
        runs.fit("static", FIT_CONFIG, tmp_path)
    assert snapshot(tmp_path) == before


LONGER = replace(FIT_CONFIG, steps=4096)


@pytest.fixture
def started_at(monkeypatch):
    """Kill the first fit after 2,600 steps; the steps at which each fit started."""
    callback = partial(CheckpointCallback, every=1024)
    monkeypatch.setattr(sb3, "CheckpointCallback", callback)
    started_at = []

    class KillingProgressBar(sb3.ProgressBar):
        killed = False

        def _on_training_start(self):
            started_at.append(self.num_timesteps)
            super()._on_training_start()

        def _on_step(self):
            # After the checkpoint at 2,048 steps, before the next.
            if self.num_timesteps >= 2_600 and not KillingProgressBar.killed:
                KillingProgressBar.killed = True
                raise KeyboardInterrupt
            return super()._on_step()

    monkeypatch.setattr(sb3, "ProgressBar", KillingProgressBar)
    return started_at


@pytest.fixture
def killed_dir(tmp_path, started_at):
    """The folder of a fit that was killed."""
    with pytest.raises(KeyboardInterrupt):
        runs.fit("ppo", LONGER, tmp_path)
    return tmp_path


def test_fit_killed_leaves_checkpoint(killed_dir):
    assert (killed_dir / CHECKPOINT).exists()
    assert not (killed_dir / ROUTER_FILE).exists()
    message = "which is unfinished; run the same command to resume"
    with pytest.raises(FileNotFoundError, match=message):
        runs.load(killed_dir)


def test_fit_killed_rejects_other_seed(killed_dir):
    with pytest.raises(ValueError, match="where seed differ"):
        runs.fit("ppo", replace(LONGER, seed=1), killed_dir)


def test_fit_killed_resumes_from_checkpoint(killed_dir, started_at):
    runs.fit("ppo", LONGER, killed_dir)
    assert started_at == [0, 2048]
    assert not (killed_dir / CHECKPOINT).exists()
    assert runs.load(killed_dir).agent == "ppo"


@pytest.mark.parametrize("name", [".", "missing"])
def test_load_without_run_says_how_to_make_one(tmp_path, name):
    message = (
        r"`run` must be the folder of a fitted router, got .*, which holds no run; make one with "
        "`rnr-gym train`"
    )
    with pytest.raises(FileNotFoundError, match=message):
        runs.load(tmp_path / name)


def test_load_rejects_run_of_other_images(tmp_path, monkeypatch):
    runs.fit("full", FIT_CONFIG, tmp_path)
    # The routing problem is the same for all images, so it does not tell.
    monkeypatch.setattr(data, "load", load_other)
    with pytest.raises(ValueError, match="`run` must be fitted to these weights and images"):
        runs.load(tmp_path)


@pytest.fixture(scope="module", params=[True, False], ids=["exits", "no exits"])
def exits(request):
    return request.param


@pytest.fixture(scope="module")
def ppo_run(exits, tmp_path_factory):
    """The configuration and the folder of a fitted learner; leave the folder as it is."""
    kwargs = {} if exits else {"exits": False}
    fit_config = replace(FIT_CONFIG, kwargs=kwargs)
    run_dir = tmp_path_factory.mktemp("ppo")
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        runs.fit("ppo", fit_config, run_dir)
    return fit_config, run_dir


@pytest.fixture
def pixels():
    """The first 60 images of `test`."""
    return small.pixels_of(data.load("digits", "test").take(np.arange(60)))


def test_classifier_from_run_has_its_settings(ppo_run, exits):
    _, run_dir = ppo_run
    classifier = RoutedClassifier.from_run(run_dir)
    assert classifier.exits == exits
    assert classifier.agent == "ppo"
    assert classifier.curve == runs.load(run_dir).curve

    macs = decision_macs(classifier.router, classifier.spec)
    assert classifier.decision_macs == macs > 0


def test_classifier_from_run_matches_evaluation(ppo_run, pixels):
    fit_config, run_dir = ppo_run
    classifier = RoutedClassifier.from_run(run_dir)
    routed = classifier(pixels, tradeoff=0.3)
    evaluation = evaluate(fit_config.source("test"), classifier.router, 0.3)
    np.testing.assert_array_equal(routed.path, evaluation.path[:60])
    np.testing.assert_array_equal(routed.macs, evaluation.macs[:60])
    np.testing.assert_array_equal(routed.logits.argmax(1), evaluation.prediction[:60])


def test_classifier_from_run_keeps_budget(ppo_run, pixels):
    _, run_dir = ppo_run
    classifier = RoutedClassifier.from_run(run_dir)
    budget = classifier.curve.compute[0]
    by_budget = classifier(pixels, compute=budget)
    by_tradeoff = classifier(pixels, tradeoff=classifier.curve.tradeoff_for(budget))
    assert by_budget.path.tolist() == by_tradeoff.path.tolist()
