"""What the bundled classifiers spend on `test` when asked for a mean compute.

Run: `python benchmarks/cifar10/budgets.py`, with CIFAR-10 at hand; one minute, once the route
table exists.
"""

from __future__ import annotations

from rnr_gym.agents import AGENTS
from rnr_gym.backbones import weights
from rnr_gym.classifier import RoutedClassifier
from rnr_gym.experiments.evaluation import evaluate
from rnr_gym.routing.protocols import RoutingSource
from rnr_gym.routing.sources import open_source

NAMES = ("rnr-cifar10", "rnr-cifar10-channels")
BUDGETS = (0.1, 0.2, 0.3, 0.45, 0.6)


def main() -> None:
    """Print one line for each router and budget."""
    for name in NAMES:
        for kind in weights.BUNDLED:
            if weights.backbone_file(name, kind).is_file():
                report_all(name, kind)


def report_all(name: str, kind: str) -> None:
    """Print the lines of every router that is bundled for some weights."""
    source = open_source("cifar10", "test", name, weights=kind, backend="table")
    for agent in AGENTS:
        if weights.router_file(name, agent, kind).is_file():
            report(name, kind, agent, source)


def report(name: str, kind: str, agent: str, source: RoutingSource) -> None:
    """Print one line for each budget of a bundled classifier."""
    classifier = RoutedClassifier.from_pretrained(name, agent=agent, weights=kind)
    assert classifier.curve is not None
    for budget in BUDGETS:
        # The curve was measured on `route`, so `test` shows whether it carries over.
        tradeoff = classifier.curve.tradeoff_for(budget)
        evaluation = evaluate(source, classifier.router, tradeoff)
        compute = source.spec.compute(evaluation.macs.mean())
        accuracy = evaluation.correct.mean()
        print(
            f"{name}, {kind}, {agent}: asked {budget:g}, spent {compute:.3f}, "
            f"accuracy {accuracy:.1%}"
        )


if __name__ == "__main__":
    main()
