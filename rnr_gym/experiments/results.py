"""What a comparison is made of, and the figures that `results.json` holds.

The dataclasses have the keys of the JSON as fields, in the order of the file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np

from rnr_gym.agents import AGENTS, FitConfig
from rnr_gym.data import ImageSet
from rnr_gym.experiments.evaluation import Evaluation, evaluate_paths
from rnr_gym.registration import registered_kwargs
from rnr_gym.routing.live import Live
from rnr_gym.routing.protocols import Indices, RoutingSource
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.sources import open_images, open_source

ORACLE = "oracle"
"""The best path of each image, given its label. It is shown among the routers, but is no agent."""


def is_of_kind(name: str, *kinds: str) -> bool:
    """Whether a router is an agent of one of these kinds."""
    return name in AGENTS and AGENTS[name].kind in kinds


def is_adaptive(name: str) -> bool:
    """Whether a router treats images differently."""
    return not is_of_kind(name, "fixed", "imageless")


class Record(NamedTuple):
    """One router, seed and trade-off, with the outcome of every test image.

    Attributes:
        router: an agent's name, or `ORACLE`.
        seed: the router's.
        tradeoff: λ.
        static: whether it is charged as a static network.
        decision_macs: the router's MACs for one decision.
        seconds: how long the evaluation took.
        evaluation: the outcomes.
    """

    router: str
    seed: int
    tradeoff: float
    static: bool
    decision_macs: int
    seconds: float
    evaluation: Evaluation


class Testbed(NamedTuple):
    """What all routers of a comparison are evaluated on: N images of `test`.

    Attributes:
        images: the images; None where only their route table is at hand.
        source: what is routed.
        table: its route table; None where it would be too large.
    """

    images: ImageSet | None
    source: RoutingSource
    table: RouteTable | None

    @classmethod
    def open(cls, fit_config: FitConfig) -> Testbed:
        """The split `test` of the environment that routers are fitted to."""
        kwargs = {**registered_kwargs(fit_config.env), **fit_config.kwargs, "split": "test"}
        source = open_source(**kwargs)
        # The live network is the reference; its table only gives the same outcomes sooner.
        if isinstance(source, Live):
            return cls(images=source.images, source=source, table=fit_config.table("test"))

        assert isinstance(source, RouteTable)
        table_alone = cls(images=None, source=source, table=source)
        try:
            # A table needs no images, so none are downloaded for it.
            images = open_images(**{**kwargs, "download": False})
        except FileNotFoundError:
            return table_alone
        # Images of another version of the data set are not those that the table is about.
        if not np.array_equal(images.labels, source.labels):
            return table_alone
        return cls(images=images, source=source, table=source)

    @property
    def fastest(self) -> RoutingSource:
        """The table where there is one: it gives the outcomes of the source without running it."""
        if self.table is not None:
            return self.table
        return self.source

    @property
    def original_id(self) -> Indices:
        """int64 `(N,)`: the same for all versions of one original."""
        if self.images is None:
            return np.arange(len(self.source.labels))
        return self.images.original_id

    @property
    def severity(self) -> Indices:
        """int64 `(N,)`: zeros where nothing is known."""
        if self.images is None:
            return np.zeros(len(self.source.labels), np.int64)
        return self.images.severity

    def plain(self) -> Evaluation:
        """What the plain network does with every image."""
        # As a static network, so that neither glance nor exits are charged.
        spec = self.source.spec
        shape = (len(self.source.labels), spec.num_layers)
        return evaluate_paths(self.fastest, np.full(shape, spec.full_path, np.int8), static=True)


@dataclass(frozen=True)
class Row:
    """Figures of one record: means over the images, unless said otherwise.

    Attributes:
        router, seed, tradeoff, static, decision_macs, seconds: those of the record.
        accuracy: share of right answers.
        compute: MACs over those of the plain network, the router's own included.
        router_macs: the router's own.
        loss: cross-entropy in nats.
        regret: return lost against the oracle, charged as the environment does: without the
            router's MACs and the discount of static networks. None without a table.
        path_entropy: in bits, of the distribution of paths.
        distinct_paths: number of different paths.
        exits: share of the images that an exit answered.
        images: number of images.
    """

    router: str
    seed: int
    tradeoff: float
    static: bool
    accuracy: float
    compute: float
    router_macs: float
    decision_macs: int
    loss: float
    regret: float | None
    path_entropy: float
    distinct_paths: int
    exits: float
    images: int
    seconds: float


@dataclass(frozen=True)
class RouterFigures:
    """Figures of one router over all its seeds.

    Pairs are [mean, sample standard deviation] over seeds. Both are None where some seed does not
    reach the budget; the second is None where there is one seed.

    Attributes:
        router: its name.
        seeds: number of seeds.
        accuracy_at: a pair for each budget.
        regret: the pair of mean regrets over `EVAL_TRADEOFFS`; None without a table.
        compute_range: least and most mean compute.
        decision_macs: MACs for one decision.
        distinct_paths: the most different paths at any trade-off and seed.
    """

    router: str
    seeds: int
    accuracy_at: list[list[float | None]]
    regret: list[float | None] | None
    compute_range: list[float]
    decision_macs: int
    distinct_paths: int


@dataclass(frozen=True)
class PairFigures:
    """A statistic of two routers with its 95 % intervals; infinity, which JSON lacks, is None.

    Attributes:
        router: the first router.
        against: the router that it is compared with.
        mean, low, high: over the budgets that both reach.
        budgets: those budgets.
        at: [mean, low, high] at each of them.
    """

    router: str
    against: str
    mean: float | None
    low: float | None
    high: float | None
    budgets: list[float]
    at: list[list[float | None]]


@dataclass(frozen=True)
class SeverityFigures:
    """What a router spends and achieves at each severity, at one trade-off; means over seeds.

    Attributes:
        router: its name.
        mean_compute: over all images.
        severity: the severities, ascending.
        compute, accuracy: means over the images of each.
    """

    router: str
    mean_compute: float
    severity: list[int]
    compute: list[float]
    accuracy: list[float]


@dataclass(frozen=True)
class OutcomeFigures:
    """What a router spends on images by how the full path answers them, at one trade-off.

    Attributes:
        router: its name.
        mean_compute: over all images.
        right, wrong: over those that the full path gets right, or wrong.
        low, high: 95 % interval of `wrong` less `right`.
    """

    router: str
    mean_compute: float
    right: float
    wrong: float
    low: float
    high: float


@dataclass(frozen=True)
class DifficultyFigures:
    """What a router spends and achieves at each level of difficulty, at one trade-off.

    Attributes:
        router: its name.
        mean_compute: over all images; means over seeds, as are the others.
        compute, accuracy: means over the images of each level.
    """

    router: str
    mean_compute: float
    compute: list[float]
    accuracy: list[float]


@dataclass(frozen=True)
class Difficulty:
    """Images by how hard they are for the network, where severities are not known.

    Attributes:
        measure: `"paths"`: by the share of all paths that answer right; `"full path"`, without a
            table: by whether the full path does.
        levels: names of the levels that have images, from easy to hard.
        images: the number of images of each.
        routers: one per router that follows the trade-off, but for static paths and the oracle.
    """

    measure: str
    levels: list[str]
    images: list[int]
    routers: list[DifficultyFigures]

    @classmethod
    def from_json(cls, content: dict[str, Any] | None) -> Self | None:
        """Undo `asdict`; None stays None."""
        if content is None:
            return None
        routers = [DifficultyFigures(**router) for router in content["routers"]]
        return cls(**{**content, "routers": routers})


@dataclass(frozen=True)
class UsedPath:
    """A path, and the images that take it.

    Attributes:
        path: sub-path by layer, -1 after an exit.
        share: of all images.
        accuracy, compute: means over the images that take it.
    """

    path: list[int]
    share: float
    accuracy: float
    compute: float


@dataclass(frozen=True)
class Paths:
    """The paths that the shown record uses most.

    Attributes:
        offered: by layer, the sub-paths that may be taken.
        exits: whether sub-path 0 is an exit.
        compute: mean over all images.
        distinct: the number of different paths.
        used: the most used paths, the first one most.
    """

    offered: list[list[int]]
    exits: bool
    compute: float
    distinct: int
    used: list[UsedPath]

    @classmethod
    def from_json(cls, content: dict[str, Any] | None) -> Self | None:
        """Undo `asdict`; None stays None."""
        if content is None:
            return None
        return cls(**{**content, "used": [UsedPath(**path) for path in content["used"]]})


@dataclass(frozen=True)
class ClassFigures:
    """What the shown record spends and achieves on the images of one class; means over them."""

    label: str
    images: int
    compute: float
    accuracy: float


@dataclass(frozen=True)
class Example:
    """One image of the gallery.

    Attributes:
        image: its index in `test`.
        label, prediction: names of the true class and of the answer.
        right: whether they are the same class.
        compute: spent on it.
        path: sub-path by layer, -1 after an exit.
    """

    image: int
    label: str
    prediction: str
    right: bool
    compute: float
    path: list[int]


@dataclass(frozen=True)
class Examples:
    """The images that the shown record spends least and most on; none without images."""

    cheapest: list[Example]
    most_expensive: list[Example]

    @classmethod
    def from_json(cls, content: dict[str, Any] | None) -> Self | None:
        """Undo `asdict`; None stays None."""
        if content is None:
            return None
        return cls(
            cheapest=[Example(**example) for example in content["cheapest"]],
            most_expensive=[Example(**example) for example in content["most_expensive"]],
        )


@dataclass(frozen=True)
class LearningCurve:
    """How the return of one learner rose while it was fitted, as its logs have it.

    Attributes:
        router, seed: whose.
        steps: environment steps, ascending.
        reward: mean return of the latest episodes, at trade-offs drawn at random.
    """

    router: str
    seed: int
    steps: list[int]
    reward: list[float]


@dataclass(frozen=True)
class Comparison:
    """All figures that follow from records and testbed.

    Attributes:
        budgets: mean computes at which routers are compared.
        full_accuracy: accuracy of the full path.
        rows: one per record.
        routers: one per router, the oracle included.
        differences: accuracy gained at equal compute.
        savings: compute for equal accuracy, as a share.
        lost: accuracy lost against the full path.
        by_severity: one per router, the oracle included.
        by_outcome: one per adaptive router; empty where all answers of the full path are alike.
        by_difficulty: None where severities are known, which are a better measure.
        paths: the most used ones of the shown record; None in files of earlier versions.
        by_class: one per class, of the shown record; empty without images, which name the classes.
        examples: the images of the gallery; None in files of earlier versions.
    """

    budgets: list[float]
    full_accuracy: float
    rows: list[Row]
    routers: list[RouterFigures]
    differences: list[PairFigures]
    savings: list[PairFigures]
    lost: list[PairFigures]
    by_severity: list[SeverityFigures]
    by_outcome: list[OutcomeFigures]
    by_difficulty: Difficulty | None = None
    paths: Paths | None = None
    by_class: list[ClassFigures] = field(default_factory=list)
    examples: Examples | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Comparison:
        """The figures that `results.json` holds."""
        return cls(
            budgets=content["budgets"],
            full_accuracy=content["full_accuracy"],
            rows=[Row(**row) for row in content["rows"]],
            routers=[RouterFigures(**router) for router in content["routers"]],
            differences=[PairFigures(**pair) for pair in content["differences"]],
            savings=[PairFigures(**pair) for pair in content["savings"]],
            lost=[PairFigures(**pair) for pair in content["lost"]],
            by_severity=[SeverityFigures(**router) for router in content["by_severity"]],
            by_outcome=[OutcomeFigures(**router) for router in content["by_outcome"]],
            # Files of earlier versions lack these.
            by_difficulty=Difficulty.from_json(content.get("by_difficulty")),
            paths=Paths.from_json(content.get("paths")),
            by_class=[ClassFigures(**figures) for figures in content.get("by_class", [])],
            examples=Examples.from_json(content.get("examples")),
        )


@dataclass(frozen=True)
class Shown:
    """The record whose paths, classes and images are shown."""

    router: str
    seed: int
    tradeoff: float


@dataclass(frozen=True)
class Results:
    """All of `results.json`.

    Attributes:
        env: the environment's id.
        arguments: the environment's keyword arguments that differ from the defaults.
        seeds: seeds per router that has any.
        images: number of images.
        gallery: whether there is one.
        shown: whose images it shows.
        provenance: what the figures were measured on, by the title that the page shows.
        comparison: the figures.
        learning: one curve per learner that left logs, and seed.
    """

    env: str
    arguments: dict[str, Any]
    seeds: int
    images: int
    gallery: bool
    shown: Shown
    provenance: dict[str, Any]
    comparison: Comparison
    learning: list[LearningCurve] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The content of `results.json`."""
        # The figures are keys of the file itself, next to those of the head.
        content = asdict(self)
        figures = content.pop("comparison")
        return {**content, **figures}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Results:
        """Undo `to_json`."""
        return cls(
            env=content["env"],
            arguments=content["arguments"],
            seeds=content["seeds"],
            images=content["images"],
            gallery=content["gallery"],
            shown=Shown(**content["shown"]),
            provenance=content["provenance"],
            comparison=Comparison.from_json(content),
            learning=[LearningCurve(**curve) for curve in content.get("learning", [])],
        )
