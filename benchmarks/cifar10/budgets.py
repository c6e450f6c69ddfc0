"""What the shipped classifiers spend on `test` when asked for a mean compute.

Run: `python benchmarks/cifar10/budgets.py`, with CIFAR-10 at hand; a minute once the route table exists.
"""

from __future__ import annotations

from rnr_gym.classifier import RoutedClassifier
from rnr_gym.evaluation import evaluate
from rnr_gym.sources import open_source

NAMES = ("rnr-cifar10", "rnr-cifar10-channels")
AGENTS = ("ppo", "dqn")
BUDGETS = (0.1, 0.2, 0.3, 0.45, 0.6)


def main() -> None:
    """Print one line for each router and budget."""
    for name in NAMES:
        table = open_source("cifar10", "test", name, backend="table")
        for agent in AGENTS:
            classifier = RoutedClassifier.from_pretrained(name, agent=agent)
            assert classifier.curve is not None
            for budget in BUDGETS:
                tradeoff = classifier.curve.tradeoff_for(budget)
                found = evaluate(table, classifier.router, tradeoff)
                compute = found.macs.mean() / table.spec.plain_macs
                print(f"{name}, {agent}: asked {budget:g}, spent {compute:.3f}, accuracy {found.correct.mean():.1%}")


if __name__ == "__main__":
    main()
