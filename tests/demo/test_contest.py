"""Balance points, and the answers of both routers at each of them."""

import numpy as np
import pytest

from rnr_gym.classifier import BudgetCurve
from rnr_gym.demo import contest as contest_module
from rnr_gym.demo.contest import STEP, Contest


def test_budgets_are_what_routers_can_be_asked_for(contest):
    for curve in contest.curves.values():
        assert min(curve.compute) <= contest.budgets[0]
    most = max(contest.most_compute(name) for name in contest.classifiers)
    assert most <= contest.budgets[-1] < most + STEP
    np.testing.assert_allclose(np.diff(contest.budgets), STEP)


@pytest.mark.parametrize(
    ("computes", "expected"),
    [([[0.9, 0.2], [0.5, 0.3]], (0.3, 0.9)), ([[0.412, 0.101]], (0.11, 0.42))],
    ids=["two-routers", "one-router"],
)
def test_budgets_start_where_every_router_can_follow(computes, expected):
    curves = [BudgetCurve(tradeoff=[0.1, 1.0], compute=compute) for compute in computes]
    budgets = contest_module._budgets(curves)
    assert (budgets[0], budgets[-1]) == expected


@pytest.mark.parametrize("budget", [0.08, 0.3, 0.62])
def test_position_finds_budget(contest, budget):
    assert contest.budgets[contest.position(budget)] == budget


@pytest.mark.parametrize(("budget", "position"), [(-1.0, 0), (9.0, -1), (0.0842, 0)])
def test_position_is_nearest(contest, budget, position):
    assert contest.position(budget) == range(len(contest.budgets))[position]


def test_router_without_curve_is_refused(contest, monkeypatch):
    monkeypatch.setattr(contest.classifiers["dqn"], "curve", None)
    with pytest.raises(ValueError, match="whose curves were measured"):
        Contest(contest.classifiers, contest.classes)


def test_subject_has_every_answer(contest, subject):
    assert list(subject.answers) == ["ppo", "dqn"]
    for name, answers in subject.answers.items():
        curve = contest.curves[name]
        expected = [curve.tradeoff_for(budget) for budget in contest.budgets]
        assert [answer.tradeoff for answer in answers] == expected


def test_compute_rises_with_budget(subject):
    for answers in subject.answers.values():
        assert answers[0].compute < 0.1
        assert answers[-1].compute > 1.0


def test_every_path_has_a_time(subject):
    for name, answers in subject.answers.items():
        assert min(subject.time(name, position) for position in range(len(answers))) > 0
    assert subject.plain_time > 0


def test_exit_at_glance_takes_less_time_than_full_path(subject):
    """Several times less, so a busy machine does not make it more."""
    for name in subject.answers:
        assert subject.time(name, 0) < subject.time(name, -1)
