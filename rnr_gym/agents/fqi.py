"""FittedRouter Q iteration with full information: what can be learned from these observations at all.

A route table holds the outcome of every path for every image, so nothing has to be explored. From
the last layer to the first, a small network is fitted to what each sub-path is worth at every
prefix: -λ * Δcompute, plus the realised return of the policy already fitted for the later layers.

Three things keep estimation errors from being mistaken for gains:

- No maximum over estimates enters a target: the table says what the fitted policy really gets.
- Cross-fitting: the policy that sets an image's targets was fitted without that image's original.
- The router starts from the confidence rule with one threshold for each exit, and departs from it
  only where the estimated gain exceeds a margin; margins have the best return out of fold.

The task term is right or wrong, 1 or 0. The probability of the true class has less variance, but
pays for answers that become surer and no righter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from rnr_gym.agents import thresholds
from rnr_gym.agents.features import features, summary_part
from rnr_gym.agents.base import TRADEOFF_RANGE, FitConfig
from rnr_gym.agents.thresholds import ThresholdsRouter
from rnr_gym.routing.observations import ObservationLayout, layers_of, observe
from rnr_gym.routing.route_table import LIMIT, RouteTable
from rnr_gym.routing.sources import open_images
from rnr_gym.routing.spec import RoutingSpec

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Config:
    """How a router is fitted.

    Attributes:
        tradeoffs: λ for which returns are estimated, ascending; between them they are interpolated.
        folds: parts of the originals for cross-fitting.
        hidden: width of the one hidden layer, each layer of the backbone having its own network.
        steps: the most mini-batches for each layer.
        batch_size: rows (prefix, image) of a mini-batch.
        learning_rate: of Adam, falling linearly to a twentieth.
        weight_decay: of Adam.
        observation_scale: the raw summary counts this much beside the features of `inputs`. It has
            many entries, some of which tell originals apart, so it is kept small.
        check_every: after so many steps the loss out of fold is looked at; the best step is kept.
        margins: candidates, ascending; the last one never departs from the thresholds.
        target_margin: of the policy whose returns are targets for earlier layers.
    """

    tradeoffs: tuple[float, ...] = tuple(np.geomspace(*TRADEOFF_RANGE, 14).tolist())
    folds: int = 3
    hidden: int = 32
    steps: int = 1500
    batch_size: int = 512
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    observation_scale: float = 0.1
    check_every: int = 100
    margins: tuple[float, ...] = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 4.0)
    target_margin: float = 0.02


CONFIG = Config()


class Networks(NamedTuple):
    """Several networks of one hidden layer: (F, B, D) inputs to (F, B, K * G) estimates.

    Attributes:
        weight_in: float32 `(F, D, H)`.
        bias_in: float32 `(F, 1, H)`.
        weight_out: float32 `(F, H, K * G)`.
        bias_out: float32 `(F, 1, K * G)`.
    """

    weight_in: Tensor
    bias_in: Tensor
    weight_out: Tensor
    bias_out: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(torch.baddbmm(self.bias_in, inputs, self.weight_in))
        return torch.baddbmm(self.bias_out, hidden, self.weight_out)

    def one(self, member: int) -> Networks:
        """A single one of the networks."""
        return Networks(*(part[member : member + 1] for part in self))


class FqiRouter:
    """Takes the sub-path of the best estimate where it beats the thresholds' choice by a margin.

    Attributes:
        networks: for all T layers at once, one member for each.
        tradeoffs: float64 `(G,)`, ascending.
        margins: float64 `(G,)`.
        fallback: the router it departs from.
    """

    def __init__(
        self,
        spec: RoutingSpec,
        networks: Networks,
        tradeoffs: NDArray[np.float64],
        margins: NDArray[np.float64],
        fallback: ThresholdsRouter,
    ) -> None:
        self.spec = spec
        self.networks = networks
        self.tradeoffs = tradeoffs
        self.margins = margins
        self.fallback = fallback

    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Ints, Any]:
        """Estimates and margins are interpolated over log λ, and held beyond the grid."""
        layout = self.spec.layout
        rows = np.arange(len(observation))
        tradeoff = np.maximum(observation[:, layout.tradeoff.start], 1e-9).astype(np.float64)
        grid = np.log(self.tradeoffs)
        position = np.interp(np.log(tradeoff), grid, np.arange(len(grid)))
        low = position.astype(np.int64)
        high = np.minimum(low + 1, len(grid) - 1)
        share = (position - low)[:, None]

        values = self.values(observation)
        value = (1.0 - share) * values[rows, :, low] + share * values[rows, :, high]  # (N, K)
        margin = np.interp(position, np.arange(len(grid)), self.margins)

        usual = self.fallback.predict(observation)[0]
        valid = self.spec.valid[layers_of(layout, observation)]
        chosen = depart(value[..., None], usual[:, None], margin[:, None], valid)
        return chosen[:, 0], state

    @torch.no_grad()
    def values(self, observation: NDArray[np.float32]) -> Floats:
        """float32 `(N, K, G)`: estimated returns, less the mean over an observation's sub-paths."""
        layers = layers_of(self.spec.layout, observation)
        seen = torch.from_numpy(inputs(self.spec.layout, observation))
        values = np.zeros((len(seen), self.spec.num_paths, len(self.tradeoffs)), np.float32)
        for layer in np.unique(layers).tolist():
            rows = np.flatnonzero(layers == layer)
            found = self.networks.one(layer)(seen[rows][None])  # (1, n, D) -> (1, n, K * G)
            values[rows] = found[0].numpy().reshape(len(rows), *values.shape[1:])
        return values

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        facts = {
            "tradeoffs": self.tradeoffs.tolist(),
            "margins": self.margins.tolist(),
            "fallback": self.fallback.state()[1],
        }
        return self.networks._asdict(), facts

    @classmethod
    def restore(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        facts: dict[str, Any],
    ) -> FqiRouter:
        return cls(
            spec,
            networks=Networks(**tensors),
            tradeoffs=np.array(facts["tradeoffs"]),
            margins=np.array(facts["margins"]),
            fallback=ThresholdsRouter.restore(spec, {}, facts["fallback"]),
        )


def inputs(layout: ObservationLayout, observation: NDArray[np.float32]) -> Floats:
    """What the networks read of observations `(N, D)`; float32 `(N, D')`, without λ."""
    found: Floats = features(layout, torch.from_numpy(observation)).numpy()
    return found


def depart(
    values: NDArray[np.floating],
    usual: Ints,
    margin: NDArray[np.floating] | float,
    valid: NDArray[np.bool_],
) -> Ints:
    """int64 `(N, G)`: the best sub-path where it beats the usual one by more than a margin.

    Args:
        values: `(N, K, G)`.
        usual: int64 `(N, G)`, valid sub-paths.
        margin: for all, or `(N, G)`.
        valid: bool `(N, K)`, or `(K,)` for all.
    """
    offered = np.where(valid[..., None], values, -np.inf)
    best = offered.argmax(1)
    gain = offered.max(1) - np.take_along_axis(offered, usual[:, None], axis=1)[:, 0]
    return np.where(gain > margin, best, usual)


def fit(fit_config: FitConfig) -> FqiRouter:
    """Fit to the route table of `route`; a `ValueError` where there is none.

    `fit_config.steps` is not used: nothing steps through the environment.
    """
    table = fit_config.table("route")
    if table is None:
        raise ValueError(needs_table("fqi", fit_config.env))
    return fit_table(table, originals(fit_config, table), CONFIG, fit_config.seed, fit_config.progress)


def needs_table(agent: str, env: str) -> str:
    """What an error says where there is no table."""
    return (
        f"`agent` {agent} needs a route table, got {env}, which runs live here: a table holds at "
        f'most {LIMIT:,} prefixes x images, and `backend="live"` makes none; choose other agents'
    )


def originals(fit_config: FitConfig, table: RouteTable) -> Ints:
    """int64 `(N,)`: which original each image is a version of; all differ where that is unknown."""
    alone = np.arange(len(table.labels))
    try:
        images = open_images(**{**fit_config.env_kwargs("route"), "download": False})
    except FileNotFoundError:
        return alone
    return images.source if np.array_equal(images.labels, table.labels) else alone


def fit_table(
    table: RouteTable,
    groups: Ints,
    config: Config,
    seed: int,
    progress: bool = False,
) -> FqiRouter:
    """Backward induction over the layers of a table.

    Args:
        table: outcomes of every path.
        groups: int64 `(N,)`, images with the same number are never in different folds.
        config: how.
        seed: of folds, initial weights and mini-batches.
        progress: whether to show a bar.
    """
    fallback = thresholds.solve(table)
    induction = Induction(table, groups, config, seed, fallback)
    networks = []
    layers = range(table.spec.num_layers)[::-1]
    for layer in tqdm(layers, f"fqi seed {seed}", unit="layer", disable=not progress):
        networks.append(induction.fit_layer(layer))

    saw_all = config.folds  # the member after those of the folds
    refitted = [found.one(saw_all) for found in reversed(networks)]
    parts = [torch.cat(part) for part in zip(*refitted, strict=True)]
    return FqiRouter(
        table.spec,
        networks=Networks(*parts),
        tradeoffs=np.array(config.tradeoffs),
        margins=induction.best_margins(),
        fallback=fallback,
    )


class Induction:
    """What is known of the later layers while an earlier one is fitted.

    Attributes:
        fold: int64 `(N,)`, the fold of each image.
        returns: float32 `(M, N, G)`, from each prefix on by the policies fitted out of fold; the
            rows of layers that have not been fitted yet are zero.
        actions: int8 `(margins, M, N, G)`, what those policies do with each margin.
    """

    def __init__(
        self,
        table: RouteTable,
        groups: Ints,
        config: Config,
        seed: int,
        fallback: ThresholdsRouter,
    ) -> None:
        self.table = table
        self.config = config
        self.fallback = fallback
        self.tradeoffs = np.array(config.tradeoffs, np.float32)
        self.random = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)

        _, which = np.unique(groups, return_inverse=True)
        dealt = self.random.permutation(np.arange(which.max() + 1) % config.folds)
        self.fold = dealt[which]
        prefixes, images = table.summary.shape[:2]
        self.returns = np.zeros((prefixes, images, len(self.tradeoffs)), np.float32)
        shape = (len(config.margins), prefixes, images, len(self.tradeoffs))
        self.actions = np.zeros(shape, np.int8)

    def fit_layer(self, layer: int) -> Networks:
        """Fit the networks of a layer, one for each fold and one to all images, and follow them."""
        tree = self.table.tree
        tree = np.flatnonzero(tree.layer[: len(self.table.summary)] == layer)
        networks = self.trained(layer, tree)
        for place in tree.tolist():
            self.follow(place, networks)
        return networks

    def observed(self, place: Ints, image: Ints) -> NDArray[np.float32]:
        """float32 `(n, D)`: observations at prefixes `(n,)` of images `(n,)`, λ being 0."""
        table = self.table
        return observe(
            table.spec.layout,
            summary=table.summary[place, image],
            layer=table.tree.layer[place],
            prev_sub_path=table.tree.prev_sub_path[place],
            compute=table.tree.macs[place] / table.spec.plain_macs,
            tradeoff=np.zeros(len(place)),
        )

    def targets(self, place: Ints, image: Ints) -> Floats:
        """float32 `(n, K, G)`: return of each sub-path and the fitted policy; 0 if not valid."""
        table = self.table
        prefixes = len(table.summary)
        child = table.tree.child[place]  # (n, K)
        images = np.broadcast_to(image[:, None], child.shape)
        returns = np.zeros((*child.shape, len(self.tradeoffs)), np.float32)

        answered = child >= prefixes
        answers = child[answered] - prefixes
        right = table.prediction[answers, images[answered]] == table.labels[images[answered]]
        returns[answered] = right[:, None]
        going = (child >= 0) & ~answered
        returns[going] = self.returns[child[going], images[going]]

        macs = table.tree.macs[child] - table.tree.macs[place][:, None]
        returns -= (macs / table.spec.plain_macs).astype(np.float32)[..., None] * self.tradeoffs
        returns[child < 0] = 0.0
        return returns

    def trained(self, layer: int, tree: Ints) -> Networks:
        """Networks that are each fitted to the images outside their fold; the last to all."""
        config = self.config
        layout = self.table.spec.layout
        valid = np.repeat(self.table.spec.valid[layer], len(self.tradeoffs)).astype(np.float32)
        members = [np.flatnonzero(self.fold != fold) for fold in range(config.folds)]
        members.append(np.arange(len(self.fold)))
        seen, wanted = self.drawn(layer, tree, members[-1:], 8192)
        scaling = Scaling.of(seen[0], layout, config.observation_scale)
        center = wanted[0].mean(0)
        spread = np.float32(wanted[0].std(0)[valid > 0].mean() + 1e-6)

        def batch(images: list[Ints], size: int) -> tuple[Tensor, Tensor]:
            """Standardised inputs (F, size, D) and targets (F, size, K * G)."""
            seen, wanted = self.drawn(layer, tree, images, size)
            return scaling.applied(seen), torch.from_numpy((wanted - center) / spread)

        networks = _initial(len(members), seen.shape[-1], config.hidden, len(valid), self.generator)
        weights = {"params": networks[::2], "weight_decay": config.weight_decay}
        biases = {"params": networks[1::2], "weight_decay": 0.0}
        optimizer = torch.optim.AdamW([weights, biases], lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, config.steps)
        mask = torch.from_numpy(valid)
        held_out = [np.flatnonzero(self.fold == fold) for fold in range(config.folds)]
        check = batch(held_out, 4096)
        best, kept = np.inf, networks
        for step in range(config.steps + 1):
            if step % config.check_every == 0 or step == config.steps:
                with torch.no_grad():
                    outside = Networks(*(part[: config.folds] for part in networks))
                    loss = float(_loss(outside, check, mask))
                if loss < best:
                    best, kept = loss, Networks(*(part.detach().clone() for part in networks))
            optimizer.zero_grad()
            _loss(networks, batch(members, config.batch_size), mask).backward()
            optimizer.step()
            schedule.step()
        return scaling.folded_into(kept, center, spread)

    def drawn(
        self,
        layer: int,
        tree: Ints,
        images: list[Ints],
        size: int,
    ) -> tuple[Floats, Floats]:
        """Random rows of each set of images: inputs (F, size, D) and targets (F, size, K * G).

        Half of the prefixes are uniform paths, which is where the thresholds lead. What the
        sub-paths have in common, how hard the image is, does not help to choose between them: each
        row of targets is centred.
        """
        spec = self.table.spec
        paths = self.table.tree.path[tree, :layer]
        uniform = (paths[:, None] == spec.onward[:layer].T).all(2).any(1)
        count = (len(images), size)
        place = self.random.choice(tree, count)
        picked = self.random.random(count) < 0.5
        place[picked] = self.random.choice(tree[uniform], int(picked.sum()))
        place = place.ravel()
        image = np.concatenate([part[self.random.integers(0, len(part), size)] for part in images])

        seen = inputs(spec.layout, self.observed(place, image))
        targets = self.targets(place, image)
        offered = np.float32(spec.valid[layer].sum())
        mean = targets.sum(1, keepdims=True) / offered  # those not valid are zero
        return seen.reshape(*count, -1), (targets - mean).reshape(*count, -1)

    @torch.no_grad()
    def out_of_fold(self, networks: Networks, seen: Floats) -> Floats:
        """float32 `(N, K, G)`: each image's estimates by the network fitted without its fold."""
        shape = (len(seen), self.table.spec.num_paths, len(self.tradeoffs))
        values = np.zeros(shape, np.float32)
        for fold in range(self.config.folds):
            rows = np.flatnonzero(self.fold == fold)
            found = networks.one(fold)(torch.from_numpy(seen[rows])[None])
            values[rows] = found[0].numpy().reshape(len(rows), *shape[1:])
        return values

    def follow(self, place: int, networks: Networks) -> None:
        """Note what the policies do at a prefix, and what the one that sets targets gets there."""
        table = self.table
        rows = np.arange(len(table.labels))
        observation = self.observed(np.full(len(rows), place), rows)
        values = self.out_of_fold(networks, inputs(table.spec.layout, observation))
        valid = table.spec.valid[table.tree.layer[place]]
        usual = _usual(self.fallback, observation, self.tradeoffs)
        for number, margin in enumerate(self.config.margins):
            self.actions[number, place] = depart(values, usual, margin, valid)

        taken = depart(values, usual, self.config.target_margin, valid)
        targets = self.targets(np.full(len(rows), place), rows)
        self.returns[place] = np.take_along_axis(targets, taken[:, None], axis=1)[:, 0]

    def best_margins(self) -> NDArray[np.float64]:
        """float64 `(G,)`: for each trade-off the margin with the best mean return, out of fold."""
        margins = np.array(self.config.margins[::-1])  # of equals the largest is taken
        returns = [self.mean_returns(actions) for actions in self.actions[::-1]]
        return margins[np.array(returns).argmax(0)]

    def mean_returns(self, actions: NDArray[np.int8]) -> NDArray[np.float64]:
        """float64 `(G,)`: of following `actions` (M, N, G) from the first layer to an answer."""
        table = self.table
        prefixes, images, count = actions.shape
        image = np.repeat(np.arange(images), count)
        grid = np.tile(np.arange(count), images)
        place = np.zeros(images * count, np.int64)
        for _ in range(table.spec.num_layers):
            going = np.flatnonzero(place < prefixes)
            taken = actions[place[going], image[going], grid[going]]
            place[going] = table.tree.child[place[going], taken]

        answers = place - prefixes
        right = table.prediction[answers, image] == table.labels[image]
        returns = right - self.tradeoffs[grid].astype(np.float64) * table.compute[answers]
        mean: NDArray[np.float64] = returns.reshape(images, count).mean(0)
        return mean


class Scaling(NamedTuple):
    """Standardisation of inputs: (x - mean) * factor, float32 `(D,)` each."""

    mean: Floats
    factor: Floats

    @classmethod
    def of(cls, seen: Floats, layout: ObservationLayout, observation_scale: float) -> Scaling:
        """From inputs `(n, D)`; constant ones become zero, the summary has a smaller scale."""
        mean = seen.mean(0)
        spread = seen.std(0)
        factor = np.where(spread > 1e-6, 1.0 / np.maximum(spread, 1e-6), 1.0).astype(np.float32)
        factor[summary_part(layout, seen.shape[-1])] *= observation_scale
        return cls(mean, factor)

    def applied(self, rows: Floats) -> Tensor:
        return torch.from_numpy((rows - self.mean) * self.factor)

    def folded_into(self, networks: Networks, center: Floats, spread: np.float32) -> Networks:
        """Networks of unscaled inputs and targets that say the same."""
        weight_in = networks.weight_in * torch.from_numpy(self.factor)[:, None]
        shift = torch.from_numpy(self.mean) @ weight_in  # (F, H)
        return Networks(
            weight_in=weight_in,
            bias_in=networks.bias_in - shift[:, None],
            weight_out=networks.weight_out * float(spread),
            bias_out=networks.bias_out * float(spread) + torch.from_numpy(center),
        )


def _initial(
    members: int,
    size: int,
    hidden: int,
    out: int,
    generator: torch.Generator,
) -> Networks:
    """Networks that say 0 of everything."""
    drawn = torch.randn(members, size, hidden, generator=generator) / size**0.5
    return Networks(
        weight_in=drawn.requires_grad_(),
        bias_in=torch.zeros(members, 1, hidden, requires_grad=True),
        weight_out=torch.zeros(members, hidden, out, requires_grad=True),
        bias_out=torch.zeros(members, 1, out, requires_grad=True),
    )


def _loss(networks: Networks, batch: tuple[Tensor, Tensor], valid: Tensor) -> Tensor:
    """Mean squared error over the valid sub-paths, summed over the networks."""
    seen, wanted = batch
    error = (networks(seen) - wanted) * valid
    return error.square().mean((1, 2)).sum()


def _usual(router: ThresholdsRouter, observation: NDArray[np.float32], tradeoffs: Floats) -> Ints:
    """int64 `(N, G)`: what a router does with observations `(N, D)` at each trade-off."""
    seen = observation.copy()
    actions = np.zeros((len(seen), len(tradeoffs)), np.int64)
    for number, tradeoff in enumerate(tradeoffs):
        seen[:, router.spec.layout.tradeoff] = tradeoff
        actions[:, number] = router.predict(seen)[0]
    return actions
