"""The router of `benchmarks/imagenet_sample.py`, and the figures that it has written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import rnr_gym as rnr
from rnr_gym.routing.path_tree import PathTree
from rnr_gym.routing.spec import RoutingSpec
from tests.fixtures import offshelf
from tests.fixtures.modules import module_of

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module."""
    return module_of(BENCHMARKS / "imagenet_sample.py")


@pytest.fixture(scope="module")
def backbone():
    """Two blocks of a small network, each run or skipped."""
    model = offshelf.network("mobilenet v2")
    return rnr.routable(model, offshelf.pixels(2), groups=1)


@pytest.fixture
def paths(benchmark, backbone):
    """Outcomes in which the first channel at the root says whether layer 0 has to run."""
    spec = RoutingSpec.of(backbone)
    tree = PathTree.of(spec)
    answers = tree.path[len(tree.child) :]
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(len(tree.child), 200, 6)).astype(np.float32)
    needed = pooled[0, :, 0] > 0
    correct = (answers[:, :1] == 1) | ~needed
    macs = np.array([spec.static_macs(path) for path in answers])
    return benchmark.Paths(
        tree=tree,
        compute=spec.compute(macs),
        pooled=pooled,
        correct=correct,
        probability=correct.astype(np.float32),
    )


def test_every_path_gives_what_the_network_answers(benchmark, backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("RNR_GYM_CACHE", str(tmp_path))
    images = offshelf.pixels(30, seed=4)
    labels = np.arange(30) % backbone.num_classes
    made = benchmark.all_paths(backbone, images.numpy(), labels)
    with torch.no_grad():
        logits = backbone.plain()(backbone.prepare(images))
    assert (made.correct[-1] == (logits.argmax(1).numpy() == labels)).all()
    expected = logits.softmax(1)[torch.arange(30), torch.from_numpy(labels)]
    np.testing.assert_allclose(made.probability[-1], expected, atol=1e-5)

    # The second time, answers come from the cache.
    monkeypatch.setattr(benchmark, "batch_outcomes", None)
    again = benchmark.all_paths(backbone, images.numpy(), labels)
    assert (again.pooled == made.pooled).all()


def test_router_runs_the_block_where_features_say_so(benchmark, paths):
    answers = paths.tree.path[len(paths.tree.child) :]
    costs = [paths.compute[(answers == path).all(1)] for path in ([0, 0], [1, 0])]
    # Layer 0 is then worth its cost where it helps with a probability of a half.
    tradeoffs = 0.5 / (costs[1] - costs[0])
    fitted = benchmark.fit_router(paths, paths.earned("accuracy"), tradeoffs)
    chosen = benchmark.routed(paths, fitted)
    runs = answers[chosen[0], 0] == 1
    assert np.mean(runs == (paths.pooled[0, :, 0] > 0)) > 0.9
    # Layer 1 never helps.
    assert (answers[chosen, 1] == 0).mean() > 0.95


def test_left_out_estimates_equal_those_of_refitting(benchmark):
    rng = np.random.default_rng(1)
    pooled = rng.normal(size=(40, 5))
    # Standardised, so that leaving an image out changes the scales of features only a little.
    gain = pooled[:, :1] + rng.normal(size=(40, 1))
    found = benchmark.candidates(pooled, gain)
    rest = benchmark.candidates(pooled[1:], gain[1:])
    for number in range(len(benchmark.PENALTIES)):
        expected = rest.decisions[number].gain(pooled[:1])
        np.testing.assert_allclose(found.left_out[number, :1], expected, atol=0.05)


def test_images_are_judged_by_what_others_chose(benchmark, paths):
    fold = np.arange(200) % 5
    outcomes = benchmark.cross_fitted(paths, "accuracy", fold, router_compute=0.01)
    assert outcomes["static"].correct.shape == (1, len(benchmark.TRADEOFFS), 200)
    accuracy = {name: outcome.correct[0].mean(1) for name, outcome in outcomes.items()}
    assert (accuracy["oracle"] >= accuracy["static"]).all()
    compute = outcomes["router"].compute[0].mean(1)
    assert compute[0] <= paths.compute.max() + 0.01


def test_committed_figures_are_those_of_the_known_network():
    measured = json.loads((BENCHMARKS / "imagenet_sample.json").read_text())
    assert abs(measured["full"]["value"] - 0.870) <= 0.005
    assert measured["images"] == 1000
    assert "overlap" in measured["overlap"]
    assert measured["paths"] == 2 ** len(measured["blocks"])
    for entry in measured["entries"]:
        difference = entry["difference"]
        assert difference["low"] <= difference["mean"] <= difference["high"]
