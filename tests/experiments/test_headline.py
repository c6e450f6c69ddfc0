"""The answer in a sentence: what it says in every case that figures may be in."""

import dataclasses

import pytest

from rnr_gym.experiments.headline import headline, title_of
from rnr_gym.experiments.results import ORACLE, Comparison, PairFigures, RouterFigures

BUDGETS = [0.1, 0.2, 0.3, 0.45, 0.6]
CLEAR_GAIN = (0.028, 0.019, 0.037)
CLEAR_LOSS = (-0.016, -0.021, -0.01)
LEVEL = (-0.0003, -0.0013, 0.0007)
UNSURE = (0.02, -0.03, 0.07)
FULL = (0.014, 0.011, 0.018)
"""Accuracy lost against the full path."""
FULL_SENTENCE = "It is 1.4 points [1.1, 1.8] below the full path, which answers 89.0 % right."


def router(name, cheapest=0.0, accuracy=0.8, seeds=3):
    """A router that reaches the budgets from `cheapest` on."""
    accuracy_at = []
    for budget in BUDGETS:
        accuracy_at.append([accuracy, 0.01] if budget >= cheapest else [None, None])
    return RouterFigures(
        router=name,
        seeds=seeds,
        accuracy_at=accuracy_at,
        regret=None,
        compute_range=[cheapest, 1.0],
        decision_macs=0,
        distinct_paths=1,
    )


def pair(name, against, figures, cheapest=0.0):
    """A difference that is the same at all budgets that both reach."""
    budgets = [budget for budget in BUDGETS if budget >= cheapest]
    mean, low, high = figures
    return PairFigures(
        router=name,
        against=against,
        mean=mean,
        low=low,
        high=high,
        budgets=budgets,
        at=[list(figures)] * len(budgets),
    )


def comparison_of(routers, differences=(), lost=()):
    return Comparison(
        budgets=BUDGETS,
        full_accuracy=0.89,
        rows=[],
        routers=list(routers),
        differences=list(differences),
        savings=[],
        lost=list(lost),
        by_severity=[],
        by_outcome=[],
    )


def ppo_against_static(figures, cheapest=0.0):
    """PPO and the static paths, which are the only rival."""
    return comparison_of(
        [router("static"), router("ppo", cheapest)],
        [pair("ppo", "static", figures, cheapest)],
        [pair("ppo", "full", FULL, cheapest)],
    )


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        (CLEAR_GAIN, "PPO is 2.8 points [1.9, 3.7] above the best static path."),
        (CLEAR_LOSS, "PPO is 1.6 points [1.0, 2.1] below the best static path."),
        (LEVEL, "PPO is level with the best static path (-0.03 [-0.13, +0.07])."),
        (
            UNSURE,
            "PPO is not clearly different from the best static path (+2.0 [-3.0, +7.0]).",
        ),
        (
            (0.0002, 0.0001, 0.0004),
            "PPO is level with the best static path (+0.02 [+0.01, +0.04]).",
        ),
        (
            (0.004, 0.0002, 0.008),
            "PPO is 0.40 points [0.02, 0.80] above the best static path.",
        ),
    ],
    ids=["gain", "loss", "level", "unsure", "clear but tiny", "barely clear"],
)
def test_headline_names_difference(figures, sentence):
    first, second = headline(ppo_against_static(figures))
    assert first == f"At 0.3 of the compute, {sentence}"
    assert second == FULL_SENTENCE


def test_headline_names_strongest_rule():
    comparison = comparison_of(
        [
            router("static"),
            router("confidence"),
            router("thresholds", accuracy=0.85),
            router("ppo"),
        ],
        [
            pair("thresholds", "static", CLEAR_GAIN),
            pair("ppo", "static", CLEAR_GAIN),
            pair("ppo", "confidence", CLEAR_GAIN),
            pair("ppo", "thresholds", LEVEL),
        ],
    )
    assert headline(comparison) == [
        "At 0.3 of the compute, PPO is 2.8 points [1.9, 3.7] above the best static path and level "
        "with one confidence threshold per exit (-0.03 [-0.13, +0.07])."
    ]


def test_headline_is_about_last_learner():
    """Not about the best, since that would be chosen by results on `test`."""
    comparison = comparison_of(
        [router("static"), router("dqn", accuracy=0.9), router("ppo"), router(ORACLE)],
        [pair("dqn", "static", CLEAR_GAIN), pair("ppo", "static", CLEAR_LOSS)],
    )
    assert headline(comparison)[0].startswith("At 0.3 of the compute, PPO is 1.6 points")


def test_headline_without_learner_says_so():
    comparison = comparison_of(
        [router("static"), router("confidence"), router(ORACLE)],
        [pair("confidence", "static", CLEAR_GAIN)],
    )
    assert headline(comparison) == [
        "At 0.3 of the compute, one confidence threshold is 2.8 points [1.9, 3.7] above the best "
        "static path.",
        "No learner was compared.",
    ]


def test_headline_turns_pair_of_rules_round():
    """Rules are compared once, so the last one may be the second of its pair."""
    comparison = comparison_of(
        [router("thresholds"), router("confidence")],
        [pair("thresholds", "confidence", CLEAR_GAIN)],
    )
    assert headline(comparison)[0] == (
        "At 0.3 of the compute, one confidence threshold is 2.8 points [1.9, 3.7] below one "
        "confidence threshold per exit."
    )


def test_headline_without_adaptive_router():
    comparison = comparison_of([router("static", accuracy=0.8), router("full", 1.0, 0.89)])
    assert headline(comparison) == [
        "No router that treats images differently was compared.",
        "At 0.3 of the compute, the best static path answers 80.0 % right; the full path, 89.0 %.",
    ]


def test_headline_without_adaptive_router_or_budget():
    comparison = comparison_of([router("full", cheapest=1.0)])
    assert headline(comparison) == ["No router that treats images differently was compared."]


def test_headline_takes_nearest_budget_reached():
    first, second = headline(ppo_against_static(CLEAR_GAIN, cheapest=0.4))
    assert first == (
        "At 0.45 of the compute, the budget nearest to 0.3 that these routers reach, PPO is 2.8 "
        "points [1.9, 3.7] above the best static path."
    )
    assert second == FULL_SENTENCE


def test_headline_of_router_above_all_budgets():
    comparison = comparison_of([router("static"), router("ppo", cheapest=0.72)])
    assert headline(comparison) == [
        "PPO spends 0.72 of the compute or more with some seed, which is above the budgets at "
        "which routers are compared, up to 0.6."
    ]


def test_headline_without_rival():
    comparison = comparison_of([router("ppo", accuracy=0.87)], lost=[pair("ppo", "full", FULL)])
    assert headline(comparison) == [
        "At 0.3 of the compute, PPO answers 87.0 % right; no rival was compared.",
        FULL_SENTENCE,
    ]


def test_headline_with_one_seed_says_so():
    comparison = ppo_against_static(CLEAR_GAIN)
    routers = [dataclasses.replace(figures, seeds=1) for figures in comparison.routers]
    sentences = headline(dataclasses.replace(comparison, routers=routers))
    assert sentences[-1] == (
        "It has one seed, so the intervals do not say what another seed would change."
    )


def test_unknown_router_keeps_its_name():
    assert title_of("rnr-dqn-groups") == "rnr-dqn-groups"
