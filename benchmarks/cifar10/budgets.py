"""What the bundled classifiers spend on `test` when asked for a mean compute.

Run: `python benchmarks/cifar10/budgets.py`, with CIFAR-10 at hand; one minute, once the route
table exists.
"""

from __future__ import annotations

from rnr_gym.classifier import RoutedClassifier
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.routing.protocols import RoutingSource
from rnr_gym.routing.sources import open_source

NAMES = ("rnr-cifar10", "rnr-cifar10-channels")
AGENTS = ("ppo", "dqn")
BUDGETS = (0.1, 0.2, 0.3, 0.45, 0.6)


def main() -> None:
    """Print one line for each router and budget."""
    for name in NAMES:
        source = open_source("cifar10", "test", name, backend="table")
        for agent in AGENTS:
            report(name, agent, source)


def report(name: str, agent: str, source: RoutingSource) -> None:
    """Print one line for each budget of a bundled classifier."""
    classifier = RoutedClassifier.from_pretrained(name, agent=agent)
    assert classifier.curve is not None
    for budget in BUDGETS:
        # The curve was measured on `route`, so `test` shows whether it carries over.
        tradeoff = classifier.curve.tradeoff_for(budget)
        evaluation = evaluate(source, classifier.router, tradeoff)
        compute = source.spec.compute(evaluation.macs.mean())
        accuracy = evaluation.correct.mean()
        print(f"{name}, {agent}: asked {budget:g}, spent {compute:.3f}, accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
