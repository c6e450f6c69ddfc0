"""A fitted router in its folder: begun once, taken up again, finished, loaded."""

import json
from functools import lru_cache, partial

import numpy as np
import pytest
import torch

from rnr_gym import agents, data, storage
from rnr_gym.agents import FitConfig, sb3_router
from rnr_gym.agents.sb3_router import CHECKPOINT, CheckpointCallback
from rnr_gym.classifier import ROUTER
from rnr_gym.experiments import runs
from rnr_gym.experiments.evaluation import evaluate, measure_curve
from rnr_gym.experiments.runs import CONFIG, claim, identity
from rnr_gym.routing.rollout import decision_macs
from rnr_gym.routing.sources import digest_of

WHOLE = data.load
ENV = "RNR-Digits-v0"
FACTS = {"agent": "ppo", "steps": 100, "tradeoffs": [0.01, 2.0]}


@lru_cache
def few(name, split, *more):
    """A part of a split, whole originals: some hundred images, whose table takes a second."""
    images = WHOLE(name, split, *more)
    return images.take(np.isin(images.source, np.unique(images.source)[::16]))


def few_digits(patch):
    """Let every split be a small part of it, for all that is opened in this process."""
    patch.setattr(data, "load", few)


def snapshot(folder):
    """Every file below a folder, with its content and when it was written."""
    return {
        file: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    few_digits(monkeypatch)


def fit_config(**more):
    return FitConfig(ENV, steps=1024, progress=False, **more)


@pytest.mark.parametrize("there", [False, True])
def test_a_new_or_empty_folder_is_claimed(tmp_path, there):
    folder = tmp_path / "one" / "two"
    if there:
        folder.mkdir(parents=True)
    claim(folder, FACTS, "done")
    assert json.loads((folder / CONFIG).read_text()) == FACTS
    assert [file.name for file in folder.iterdir()] == [CONFIG]


def test_unfinished_work_of_the_same_configuration_is_taken_up(tmp_path):
    claim(tmp_path, FACTS, "done")
    (tmp_path / "half").write_text("work")
    before = snapshot(tmp_path)
    claim(tmp_path, dict(reversed(FACTS.items())), "done")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({**FACTS, "steps": 200}, "steps"),
        ({**FACTS, "steps": 200, "agent": "dqn"}, "agent, steps"),
        ({**FACTS, "seed": 1}, "seed"),
        ({"agent": "ppo", "steps": 100}, "tradeoffs"),
    ],
)
def test_a_changed_configuration_is_refused_by_name(tmp_path, facts, named):
    claim(tmp_path, FACTS, "done")
    before = snapshot(tmp_path)
    with pytest.raises(
        ValueError,
        match=rf"`out` must be taken up as it was begun, got .*, where {named} differ; choose another",
    ):
        claim(tmp_path, facts, "done")
    assert snapshot(tmp_path) == before


def test_a_finished_folder_is_refused(tmp_path):
    claim(tmp_path, FACTS, "done")
    (tmp_path / "done").write_text("all")
    before = snapshot(tmp_path)
    with pytest.raises(
        FileExistsError,
        match=r"`out` must be a new folder or unfinished work, got .*, which is finished",
    ):
        claim(tmp_path, FACTS, "done")
    assert snapshot(tmp_path) == before


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("five years")
    before = snapshot(tmp_path)
    with pytest.raises(
        FileExistsError,
        match=r"`out` must be a new folder, got .*, which exists and holds something else",
    ):
        claim(tmp_path, FACTS, "done")
    assert snapshot(tmp_path) == before


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(FileExistsError, match=r"`out` must be a new folder, got"):
        claim(tmp_path / "file", FACTS, "done")
    assert (tmp_path / "file").read_text() == "text"


def test_whatever_changes_a_run_changes_its_identity(tmp_path):
    one = identity("ppo", fit_config())
    others = [
        identity("dqn", fit_config()),
        identity("ppo", fit_config(seed=1)),
        identity("ppo", fit_config(arguments={"exits": False})),
        identity("ppo", fit_config(tradeoffs=(0.1, 1.0))),
        identity("ppo", FitConfig(ENV, steps=2048)),
        identity("ppo", FitConfig("RNR-Digits-Channels-v0", steps=1024)),
    ]
    assert all(json.dumps(one) != json.dumps(other) for other in others)
    assert json.loads(json.dumps(one)) == one
    assert identity("ppo", fit_config(folder=tmp_path)) == one  # where it lies does not


@pytest.mark.parametrize("agent", ["static", "confidence", "random", "ppo"])
def test_a_run_is_fitted_kept_and_loaded(tmp_path, agent):
    path = runs.fit(agent, fit_config(), tmp_path / "run")
    assert path == tmp_path / "run" / ROUTER
    assert json.loads((tmp_path / "run" / CONFIG).read_text()) == identity(agent, fit_config())
    run, source = runs.load(tmp_path / "run"), fit_config().source("route")
    assert (run.agent, run.fit_config.env, run.fit_config.steps, run.fit_config.seed) == (
        agent,
        ENV,
        1024,
        0,
    )
    assert run.fit_config.tradeoffs == fit_config().tradeoffs
    facts = storage.load_tensors(path)[1]
    assert (facts["problem"], facts["source"]) == (source.spec.digest, digest_of(source))
    wanted = agents.AGENTS[agent].fit(fit_config())
    for tradeoff in (0.02, 0.5):
        assert (
            evaluate(source, run.router, tradeoff).path.tolist()
            == evaluate(source, wanted, tradeoff).path.tolist()
        )


def test_the_curve_is_measured_on_route_for_routers_that_adapt(tmp_path):
    runs.fit("confidence", fit_config(), tmp_path / "confidence")
    runs.fit("static", fit_config(), tmp_path / "static")
    run = runs.load(tmp_path / "confidence")
    assert run.curve == measure_curve(fit_config().source("route"), run.router)
    assert runs.load(tmp_path / "static").curve is None


def test_a_finished_run_is_not_fitted_again(tmp_path):
    runs.fit("static", fit_config(), tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match="which is finished"):
        runs.fit("static", fit_config(), tmp_path)
    assert snapshot(tmp_path) == before


def test_a_killed_run_goes_on_where_it_was_and_leaves_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(sb3_router, "CheckpointCallback", partial(CheckpointCallback, every=1024))
    longer, begun = FitConfig(ENV, steps=4096, progress=False), []

    class Killing(sb3_router.Bar):
        killed = False

        def _on_training_start(self):
            begun.append(self.num_timesteps)
            super()._on_training_start()

        def _on_step(self):
            if self.num_timesteps >= 2_600 and not Killing.killed:
                Killing.killed = True
                raise KeyboardInterrupt
            return super()._on_step()

    monkeypatch.setattr(sb3_router, "Bar", Killing)
    with pytest.raises(KeyboardInterrupt):
        runs.fit("ppo", longer, tmp_path)
    assert (tmp_path / CHECKPOINT).exists()
    assert not (tmp_path / ROUTER).exists()
    with pytest.raises(FileNotFoundError, match="which is unfinished; give the same command again"):
        runs.load(tmp_path)
    with pytest.raises(ValueError, match="where seed differ"):
        runs.fit("ppo", FitConfig(ENV, seed=1, steps=4096, progress=False), tmp_path)
    runs.fit("ppo", longer, tmp_path)
    assert begun == [0, 2048]
    assert not (tmp_path / CHECKPOINT).exists()
    assert runs.load(tmp_path).agent == "ppo"


def test_a_folder_without_a_run_says_how_to_make_one(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            FileNotFoundError,
            match=r"`run` must be the folder of a fitted router, got .*, which holds no run; make one with",
        ):
            runs.load(folder)


def test_a_run_of_other_images_is_refused(tmp_path, monkeypatch):
    runs.fit("full", fit_config(), tmp_path)
    monkeypatch.setattr(data, "load", lambda *parts: other(*parts))
    with pytest.raises(ValueError, match="`run` must be fitted to these weights and images"):
        runs.load(tmp_path)


@lru_cache
def other(name, split, *more):
    """Another part of a split."""
    images = WHOLE(name, split, *more)
    return images.take(np.isin(images.source, np.unique(images.source)[5::16]))


@pytest.mark.parametrize("exits", [True, False])
def test_a_run_becomes_a_classifier(tmp_path, exits):
    own = fit_config(arguments={} if exits else {"exits": False})
    runs.fit("ppo", own, tmp_path)
    routed, images = runs.classifier(tmp_path), data.load("digits", "test").take(np.arange(60))
    assert (routed.exits, routed.agent) == (exits, "ppo")
    assert routed.curve == runs.load(tmp_path).curve
    pixels = torch.from_numpy(images.images.copy())
    found = routed(pixels, tradeoff=0.3)
    wanted = evaluate(own.source("test"), routed.router, 0.3)
    assert found.path.tolist() == wanted.path[:60].tolist()
    assert found.macs.tolist() == wanted.macs[:60].tolist()
    assert found.logits.argmax(1).tolist() == wanted.prediction[:60].tolist()
    budget = routed.curve.compute[0]
    by_budget, by_tradeoff = (
        routed(pixels, **chosen)
        for chosen in ({"compute": budget}, {"tradeoff": routed.curve.tradeoff_for(budget)})
    )
    assert by_budget.path.tolist() == by_tradeoff.path.tolist()
    assert routed.decision_macs == decision_macs(routed.router, routed.spec) > 0
