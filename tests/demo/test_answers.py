"""Answers at many trade-offs at once are those of the deployed classifier, one by one."""

import numpy as np
import pytest

from rnr_gym.demo import answers
from rnr_gym.demo.answers import as_batch, milliseconds, plain_answer, routed_answers, run_again
from rnr_gym.routing.preferences import Preferences

TRADEOFFS = (0.01, 0.1, 0.2, 0.5)


@pytest.fixture(params=["ppo", "dqn"])
def classifier(request, contest):
    return contest.classifiers[request.param]


def assert_same(answer, routed):
    np.testing.assert_array_equal(answer.path, routed.path[0])
    assert answer.macs == routed.macs[0]
    assert answer.compute == routed.compute[0]
    expected = routed.logits.softmax(1)[0]
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-4)
    assert answer.prediction == int(expected.argmax())


def test_answers_match_classifier(classifier, noise):
    routed = routed_answers(classifier, noise, TRADEOFFS)
    for tradeoff, answer in zip(TRADEOFFS, routed, strict=True):
        assert answer.tradeoff == tradeoff
        assert_same(answer, classifier(as_batch(noise), tradeoff=tradeoff))


def test_plain_answer_matches_classifier(classifier, noise):
    answer = plain_answer(classifier, noise)
    assert_same(answer, classifier(as_batch(noise)))
    assert (answer.compute, answer.tradeoff, answer.preferences) == (1.0, None, None)


def test_preferences_explain_the_path(classifier, noise):
    """They are those of valid sub-paths at layers that were reached; the highest is executed."""
    valid = classifier.spec.valid
    for answer in routed_answers(classifier, noise, TRADEOFFS):
        values = answer.preferences.values
        reached = answer.path >= 0
        np.testing.assert_array_equal(~np.isnan(values), valid & reached[:, None])
        np.testing.assert_array_equal(np.nanargmax(values[reached], 1), answer.path[reached])


@pytest.mark.parametrize(("agent", "kind"), [("ppo", "probability"), ("dqn", "Q-value")])
def test_kind_of_preferences_is_told(contest, noise, agent, kind):
    (answer,) = routed_answers(contest.classifiers[agent], noise, [0.1])
    assert answer.preferences.kind == kind


def test_router_that_cannot_tell_has_no_preferences(classifier, noise, monkeypatch):
    monkeypatch.setattr(answers, "preferences_of", lambda *args: None)
    (answer,) = routed_answers(classifier, noise, [0.1])
    assert answer.preferences is None


def test_preferences_of_layers_are_kept_apart(contest):
    """Of two images, one exits at the first layer."""
    spec = contest.spec
    path = np.full((2, spec.num_layers), -1, np.int8)
    path[0, 0] = 0
    path[1, :2] = (1, 2)
    told = []
    for layer in range(2):
        told.append(Preferences("Q-value", np.full((2, spec.num_paths), float(layer))))

    first, second = answers._by_image(told, path, spec)
    assert np.nanmax(first.values[0]) == 0
    assert np.isnan(first.values[1:]).all()
    assert np.nanmin(second.values[1]) == 1
    assert np.isnan(second.values[2:]).all()


def test_times_are_medians_of_runs_in_turns(monkeypatch):
    seconds = {"first": 0.001, "second": 0.005}
    calls = []
    now = 0.0

    def run(name):
        nonlocal now
        calls.append(name)
        # Something else delays one of the runs.
        now += 10.0 if len(calls) == 11 else seconds[name]

    monkeypatch.setattr(answers.time, "perf_counter", lambda: now)
    times = milliseconds({name: lambda name=name: run(name) for name in seconds})
    assert times == pytest.approx({"first": 1.0, "second": 5.0})
    assert calls == ["first", "second"] * (answers.WARM_UP + answers.RUNS)


def test_timed_run_takes_the_same_path(classifier, noise):
    for answer in routed_answers(classifier, noise, TRADEOFFS):
        routed = run_again(classifier, noise, answer)()
        np.testing.assert_array_equal(routed.path[0], answer.path)
