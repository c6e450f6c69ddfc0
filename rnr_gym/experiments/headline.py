"""The answer of a comparison in one or two sentences, from its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rnr_gym.experiments.results import (
    ORACLE,
    Comparison,
    PairFigures,
    RouterFigures,
    is_adaptive,
    is_of_kind,
)

COMPUTE = 0.3
"""The sentence is about the budget nearest to this."""
LEVEL = 0.01
"""Routers are level if the interval of their difference has 0 and is nearer to it than this."""
TINY = 0.001
"""They are level as well if the whole interval is nearer to 0 than this, clear as it may be."""
FINE = 0.005
"""Differences whose interval is narrower are given with two decimals."""
NAMES = {
    "static": "the best static path",
    "blind": "the blind router",
    "confidence": "one confidence threshold",
    "thresholds": "one confidence threshold per exit",
    "eenet": "EENet",
    "fqi": "fitted Q iteration",
    "random": "random sub-paths",
    "full": "the full path",
    "cheapest": "the cheapest path",
    "blockdrop": "BlockDrop",
    "skipnet": "SkipNet",
    "dqn": "DQN",
    "rnr-dqn": "the DQN of RNR",
    "ppo": "PPO",
    "a2c": "A2C",
    "maskable-ppo": "PPO with action masks",
    "qr-dqn": "QR-DQN",
}
"""Routers as sentences call them; others have the name that they were given."""


def headline(comparison: Comparison) -> list[str]:
    """The answer: what a learner gains over its rivals at one budget, and what it loses.

    The learner is the last of the comparison, not the best: to choose by results on `test` would
    flatter it. Without learners it is the last adaptive router.
    """
    names = [router.router for router in comparison.routers]
    learners = [name for name in names if is_of_kind(name, "learner")]
    adaptive = [name for name in names if is_adaptive(name) and name != ORACLE]
    if not adaptive:
        return [
            "No router that treats images differently was compared.",
            *_most_accurate(comparison),
        ]

    name = (learners or adaptive)[-1]
    accuracies = _accuracies(comparison, name)
    if accuracies:
        rivals = _rivals(comparison, name)
        # Whoever reaches a budget reaches all above it, so there is one that all of them reach.
        shared = [set(pair.budgets) for pair in rivals]
        common = [budget for budget in accuracies if all(budget in budgets for budgets in shared)]
        budget = _nearest(common)
        sentences = [_at_budget(comparison, name, rivals, budget)]
        sentences += _against_full(comparison, name, budget)
    else:
        sentences = [_too_expensive(comparison, name)]
    if not learners:
        sentences.append("No learner was compared.")
    elif _figures(comparison, name).seeds == 1:
        sentences.append(
            "It has one seed, so the intervals do not say what another seed would change."
        )
    return sentences


def title_of(name: str) -> str:
    """A router's name in a sentence."""
    return NAMES.get(name, name)


def _rivals(comparison: Comparison, name: str) -> list[PairFigures]:
    """The router's pairs with the best static path and with the strongest rule."""
    pairs = {}
    for pair in comparison.differences:
        if pair.router == name:
            pairs[pair.against] = pair
        # Two rules are compared once, the other way round if the other one comes later.
        elif pair.against == name:
            pairs[pair.router] = _reversed(pair)
    rules = [rule for rule in pairs if is_of_kind(rule, "rule")]
    chosen = ["static"]
    if rules:
        chosen.append(max(rules, key=lambda rule: _near_budget(comparison, rule)))
    return [pairs[rival] for rival in chosen if rival in pairs]


def _reversed(pair: PairFigures) -> PairFigures:
    """The same difference, seen from the other router."""
    at: list[list[float | None]] = []
    for budget in pair.budgets:
        mean, low, high = _at(pair, budget)
        at.append([-mean, -high, -low])
    return replace(pair, router=pair.against, against=pair.router, at=at)


def _near_budget(comparison: Comparison, name: str) -> float:
    """A router's accuracy at the budget nearest to `COMPUTE` that it reaches."""
    accuracies = _accuracies(comparison, name)
    return accuracies[_nearest([*accuracies])]


def _figures(comparison: Comparison, name: str) -> RouterFigures:
    (figures,) = [router for router in comparison.routers if router.router == name]
    return figures


def _accuracies(comparison: Comparison, name: str) -> dict[float, float]:
    """A router's accuracy at each budget that it reaches."""
    accuracies = {}
    at_budgets = _figures(comparison, name).accuracy_at
    for budget, (mean, _) in zip(comparison.budgets, at_budgets, strict=True):
        if mean is not None:
            accuracies[budget] = mean
    return accuracies


def _nearest(budgets: Sequence[float]) -> float:
    return min(budgets, key=lambda budget: abs(budget - COMPUTE))


def _at_budget(
    comparison: Comparison,
    name: str,
    rivals: Sequence[PairFigures],
    budget: float,
) -> str:
    """What the router gains over these rivals at a budget that all of them reach."""
    where = f"At {budget:g} of the compute"
    if budget != COMPUTE:
        where += f", the budget nearest to {COMPUTE:g} that these routers reach,"
    else:
        where += ","
    subject = title_of(name)
    if not rivals:
        accuracy = _accuracies(comparison, name)[budget]
        return f"{where} {subject} answers {100 * accuracy:.1f} % right; no rival was compared."
    claims = []
    for pair in rivals:
        claims.append(_relation(*_at(pair, budget), title_of(pair.against)))
    return f"{where} {subject} is {' and '.join(claims)}."


def _relation(mean: float, low: float, high: float, rival: str) -> str:
    """How a router stands to its rival, from their difference and its interval."""
    # Nor may an end that is clear of zero be rounded to it.
    fine = high - low < FINE or min(abs(low), abs(high)) < FINE / 10
    decimals = 2 if fine else 1
    if low > 0 and high > TINY:
        return f"{_interval(mean, low, high, decimals)} above {rival}"
    if high < 0 and low < -TINY:
        return f"{_interval(-mean, -high, -low, decimals)} below {rival}"
    ends = f"{100 * low:+.{decimals}f}, {100 * high:+.{decimals}f}"
    figures = f"({100 * mean:+.{decimals}f} [{ends}])"
    if max(-low, high) <= LEVEL:
        return f"level with {rival} {figures}"
    return f"not clearly different from {rival} {figures}"


def _interval(mean: float, low: float, high: float, decimals: int) -> str:
    ends = f"{100 * low:.{decimals}f}, {100 * high:.{decimals}f}"
    return f"{100 * mean:.{decimals}f} points [{ends}]"


def _against_full(comparison: Comparison, name: str, budget: float) -> list[str]:
    """What the router loses against the full path at a budget; nothing if that is not known."""
    for pair in comparison.lost:
        if pair.router != name or budget not in pair.budgets:
            continue
        mean, low, high = _at(pair, budget)
        # `lost` is the other way round: what the full path gains.
        relation = _relation(-mean, -high, -low, "the full path")
        return [f"It is {relation}, which answers {100 * comparison.full_accuracy:.1f} % right."]
    return []


def _too_expensive(comparison: Comparison, name: str) -> str:
    cheapest = _figures(comparison, name).compute_range[0]
    return (
        f"{_capitalised(title_of(name))} spends {cheapest:.2f} of the compute or more with some "
        f"seed, which is above the budgets at which routers are compared, up to "
        f"{max(comparison.budgets):g}."
    )


def _most_accurate(comparison: Comparison) -> list[str]:
    """Which router is right most often at the nearest budget; nothing if none is reached."""
    at_budget: dict[float, dict[str, float]] = {}
    for router in comparison.routers:
        if router.router == ORACLE:
            continue
        for budget, accuracy in _accuracies(comparison, router.router).items():
            at_budget.setdefault(budget, {})[router.router] = accuracy
    if not at_budget:
        return []
    budget = _nearest([*at_budget])
    accuracies = at_budget[budget]
    best = max(accuracies, key=lambda name: accuracies[name])
    return [
        f"At {budget:g} of the compute, {title_of(best)} answers {100 * accuracies[best]:.1f} % "
        f"right; the full path, {100 * comparison.full_accuracy:.1f} %."
    ]


def _at(pair: PairFigures, budget: float) -> tuple[float, float, float]:
    """Mean and interval of a difference at a budget."""
    mean, low, high = pair.at[pair.budgets.index(budget)]
    # Only savings may be infinite, which is None.
    assert mean is not None
    assert low is not None
    assert high is not None
    return mean, low, high


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
