"""Backward induction of fitted Q iteration: from the last layer of a route table to the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym.agents.folds import folds
from rnr_gym.agents.fqi_networks import Batch, Floats, Networks, Scaling, inputs, squared_error
from rnr_gym.agents.thresholds import ThresholdsRouter
from rnr_gym.routing.observations import observe
from rnr_gym.routing.rewards import tradeoff_grid
from rnr_gym.routing.route_table import RouteTable

Ints = NDArray[np.int64]
SCALING_ROWS = 8192
"""Rows (prefix, image) from which the scales of inputs and targets of a layer are measured."""
HELD_OUT_ROWS = 4096
"""Rows of each fold on which the networks are compared while they are trained."""


@dataclass(frozen=True)
class Config:
    """How a router is fitted.

    Attributes:
        tradeoffs: λ for which returns are estimated, ascending; interpolated between them.
        folds: parts of the originals for cross-fitting.
        hidden: width of the one hidden layer; each layer of the backbone has its own network.
        steps: the most mini-batches for each layer.
        batch_size: rows (prefix, image) of a mini-batch.
        learning_rate: of AdamW, falling linearly to a twentieth.
        weight_decay: of AdamW.
        observation_scale: factor of the raw summary among the inputs. It has many entries, some of
            which tell originals apart, so it is kept small.
        check_every: steps after which the loss out of fold is measured; the best networks are kept.
        margins: candidates, ascending; the last one never departs from the thresholds.
        target_margin: of the policy whose returns are targets for earlier layers.
    """

    tradeoffs: tuple[float, ...] = tradeoff_grid(14)
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


def depart(
    values: NDArray[np.floating],
    usual: Ints,
    margin: NDArray[np.floating] | float,
    valid: NDArray[np.bool_],
) -> Ints:
    """int64 `(N, G)`: the best sub-path where it beats the usual one by more than a margin.

    Args:
        values: `(N, K, G)`, estimated returns.
        usual: int64 `(N, G)`, valid sub-paths.
        margin: one for all, or `(N, G)`.
        valid: bool `(N, K)`, or `(K,)` for all.
    """
    offered = np.where(valid[..., None], values, -np.inf)
    best = offered.argmax(1)
    gain = offered.max(1) - np.take_along_axis(offered, usual[:, None], axis=1)[:, 0]
    return np.where(gain > margin, best, usual)


class Induction:
    """What is known of later layers while an earlier one is fitted.

    The table has M prefixes and N images; there are G trade-offs and K sub-paths.

    Args:
        table: outcomes of every path.
        groups: int64 `(N,)`, images with the same number are in the same fold.
        config: how to fit.
        seed: of folds, initial weights and mini-batches.
        fallback: the router that the policies depart from.

    Attributes:
        fold: int64 `(N,)`, the fold of each image.
        returns: float32 `(M, N, G)`, from each prefix on, by the policies fitted out of fold; zero
            at layers that have not been fitted yet.
        policies: int8 `(margins, M, N, G)`, the sub-paths that those policies take.
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
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)

        # Whole groups are distributed, so that versions of one original share a fold.
        self.fold = folds(groups, config.folds, self.rng)

        prefixes, images = table.summary.shape[:2]
        shape = (prefixes, images, len(self.tradeoffs))
        self.returns = np.zeros(shape, np.float32)
        self.policies = np.zeros((len(config.margins), *shape), np.int8)

    def fit_layer(self, layer: int) -> Networks:
        """Fit a layer's networks, and note what their policies do and get at its prefixes.

        Returns:
            One network for each fold, and one that is fitted to all images.
        """
        # Beyond the prefixes the tree holds answers, where nothing is decided.
        prefix_layer = self.table.tree.layer[: self.table.num_prefixes]
        nodes = np.flatnonzero(prefix_layer == layer)
        networks = self.trained(layer, nodes)
        for node in nodes.tolist():
            self._apply(node, networks)
        return networks

    def observed(self, node: Ints, image_idx: Ints) -> Floats:
        """float32 `(n, D)`: observations of images `(n,)` at prefixes `(n,)`, with λ = 0."""
        spec = self.table.spec
        tree = self.table.tree
        return observe(
            spec.layout,
            summary=self.table.summary[node, image_idx],
            layer=tree.layer[node],
            prev_sub_path=tree.prev_sub_path[node],
            compute=spec.compute(tree.cost[node]),
            # Networks do not read λ: they estimate returns for all trade-offs at once.
            tradeoff=np.zeros(len(node)),
        )

    def targets(self, node: Ints, image_idx: Ints) -> Floats:
        """float32 `(n, K, G)`: the return of each sub-path followed by the fitted policy.

        It is 0 for sub-paths that are not valid.
        """
        table = self.table
        child = table.tree.child[node]  # (n, K), -1 for sub-paths that are not valid
        images = np.broadcast_to(image_idx[:, None], child.shape)
        returns = np.zeros((*child.shape, len(self.tradeoffs)), np.float32)

        # An answer is worth 1 if it is right, and nothing follows it.
        is_answer = child >= table.num_prefixes
        answer = child[is_answer] - table.num_prefixes
        answered = images[is_answer]
        correct = table.prediction[answer, answered] == table.labels[answered]
        returns[is_answer] = correct[:, None]

        # Layers are fitted from last to first, so the returns from every child on are known.
        continues = (child >= 0) & ~is_answer
        returns[continues] = self.returns[child[continues], images[continues]]

        cost = table.tree.cost[child] - table.tree.cost[node][:, None]
        returns -= table.spec.compute(cost).astype(np.float32)[..., None] * self.tradeoffs
        # A child of -1 reads the cost of the last node, which mean nothing here.
        returns[child < 0] = 0.0
        return returns

    def trained(self, layer: int, nodes: Ints) -> Networks:
        """Networks that are each fitted to the images outside their fold; the last one to all."""
        config = self.config
        everyone = np.arange(len(self.fold))
        held_out = [np.flatnonzero(self.fold == fold) for fold in range(config.folds)]
        members = [np.setdiff1d(everyone, out) for out in held_out]
        members.append(everyone)
        valid = np.repeat(self.table.spec.valid[layer], len(self.tradeoffs)).astype(np.float32)

        # All members share one scaling, so that their losses out of fold can be added.
        some_x, some_targets = self._sample(layer, nodes, [everyone], SCALING_ROWS)
        scaling = Scaling.of(some_x[0], self.table.spec.layout, config.observation_scale)
        center = some_targets[0].mean(0)  # (K * G,)
        # One spread for all, so that sub-paths and trade-offs keep their weights in the loss.
        spread = np.float32(some_targets[0].std(0)[valid > 0].mean() + 1e-6)

        def batch(images: list[Ints], size: int) -> Batch:
            x, targets = self._sample(layer, nodes, images, size)
            standardised = (targets - center) / spread
            return Batch(scaling.applied(x), torch.from_numpy(standardised))

        initial = Networks.initial(
            members=len(members),
            num_inputs=some_x.shape[-1],
            hidden=config.hidden,
            num_outputs=len(valid),
            generator=self.generator,
        )
        best = optimised(
            initial,
            held_out=batch(held_out, HELD_OUT_ROWS),
            draw=lambda: batch(members, config.batch_size),
            valid=torch.from_numpy(valid),
            config=config,
        )
        return scaling.folded_into(best, center, spread)

    def _sample(
        self,
        layer: int,
        nodes: Ints,
        images: list[Ints],
        size: int,
    ) -> tuple[Floats, Floats]:
        """Random rows (prefix, image) of a layer, for each of F sets of images.

        Each row of targets is centred over the valid sub-paths.

        Returns:
            Inputs float32 `(F, size, D)` and targets float32 `(F, size, K * G)`.
        """
        spec = self.table.spec
        shape = (len(images), size)
        # A prefix is uniform if one sub-path, taken wherever it is valid, leads there.
        paths = self.table.tree.path[nodes, :layer]  # (n, layer)
        uniform_paths = spec.onward[:layer].T  # (K, layer)
        uniform = (paths[:, None] == uniform_paths).all(2).any(1)  # (n,)

        # Half of the prefixes lie on uniform paths, which is where the thresholds lead.
        node = self.rng.choice(nodes, shape)
        redrawn = self.rng.random(shape) < 0.5
        node[redrawn] = self.rng.choice(nodes[uniform], int(redrawn.sum()))
        node = node.ravel()

        drawn = [part[self.rng.integers(0, len(part), size)] for part in images]
        image_idx = np.concatenate(drawn)

        x = inputs(spec.layout, self.observed(node, image_idx))
        targets = self.targets(node, image_idx)
        # What the sub-paths have in common, how hard the image is, does not help to choose between
        # them. Those that are not valid add zero to the sum.
        num_valid = np.float32(spec.valid[layer].sum())
        mean = targets.sum(1, keepdims=True) / num_valid
        return x.reshape(*shape, -1), (targets - mean).reshape(*shape, -1)

    @torch.no_grad()
    def out_of_fold(self, networks: Networks, x: Floats) -> Floats:
        """float32 `(N, K, G)`: each image's estimates by the network fitted without its fold.

        Args:
            networks: those of a layer.
            x: float32 `(N, D)`, the inputs of all images at one prefix.
        """
        shape = (len(x), self.table.spec.num_paths, len(self.tradeoffs))
        values = np.zeros(shape, np.float32)
        for fold in range(self.config.folds):
            image_idx = np.flatnonzero(self.fold == fold)
            estimates = networks.one(fold)(torch.from_numpy(x[image_idx])[None])
            values[image_idx] = estimates[0].numpy().reshape(len(image_idx), *shape[1:])
        return values

    def _apply(self, node: int, networks: Networks) -> None:
        """Note what the policies do at a prefix, and the return of the one that sets targets."""
        table = self.table
        image_idx = np.arange(len(table.labels))
        nodes = np.full(len(image_idx), node)
        observation = self.observed(nodes, image_idx)
        values = self.out_of_fold(networks, inputs(table.spec.layout, observation))
        usual = _actions_at(self.fallback, observation, self.tradeoffs)  # (N, G)
        valid = table.spec.valid[table.tree.layer[node]]

        # Which margin is best is known only when all layers have been fitted.
        for policy, margin in zip(self.policies, self.config.margins, strict=True):
            policy[node] = depart(values, usual, margin, valid)

        taken = depart(values, usual, self.config.target_margin, valid)
        targets = self.targets(nodes, image_idx)
        self.returns[node] = np.take_along_axis(targets, taken[:, None], axis=1)[:, 0]

    def best_margins(self) -> NDArray[np.float64]:
        """float64 `(G,)`: for each trade-off the margin with the best mean return, out of fold."""
        # In descending order, so that the largest of equally good margins is taken.
        margins = np.array(self.config.margins[::-1])
        returns = [self.mean_returns(policy) for policy in self.policies[::-1]]
        return margins[np.array(returns).argmax(0)]

    def mean_returns(self, policy: NDArray[np.int8]) -> NDArray[np.float64]:
        """float64 `(G,)`: of following sub-paths `(M, N, G)` from the first layer to an answer."""
        table = self.table
        prefixes, images, num_tradeoffs = policy.shape
        image_idx = np.repeat(np.arange(images), num_tradeoffs)
        tradeoff_idx = np.tile(np.arange(num_tradeoffs), images)
        # Every image starts once for each trade-off.
        node = np.zeros(images * num_tradeoffs, np.int64)
        for _ in range(table.spec.num_layers):
            active = np.flatnonzero(node < prefixes)
            taken = policy[node[active], image_idx[active], tradeoff_idx[active]]
            node[active] = table.tree.child[node[active], taken]

        answer = node - prefixes
        correct = table.prediction[answer, image_idx] == table.labels[image_idx]
        cost = self.tradeoffs[tradeoff_idx].astype(np.float64) * table.compute[answer]
        mean: NDArray[np.float64] = (correct - cost).reshape(images, num_tradeoffs).mean(0)
        return mean


def optimised(
    networks: Networks,
    held_out: Batch,
    draw: Callable[[], Batch],
    valid: Tensor,
    config: Config,
) -> Networks:
    """Train networks on mini-batches, and keep them as they were when best out of fold.

    Args:
        networks: one for each fold, and one for all images, which has nothing held out.
        held_out: rows of each fold.
        draw: draws a mini-batch for each network.
        valid: float32 `(K * G,)`, see `squared_error`.
        config: steps, learning rate and weight decay.
    """
    # Decay keeps estimates from depending strongly on single inputs, which biases do not do.
    weights = {
        "params": [networks.weight_in, networks.weight_out],
        "weight_decay": config.weight_decay,
    }
    biases = {"params": [networks.bias_in, networks.bias_out], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([weights, biases], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, config.steps)

    best_loss = np.inf
    best = networks
    for step in range(config.steps + 1):
        if step % config.check_every == 0 or step == config.steps:
            with torch.no_grad():
                loss = float(squared_error(networks.first(config.folds), held_out, valid))
            if loss < best_loss:
                best_loss = loss
                best = networks.detached()

        # The step after the last check changes nothing that is kept.
        optimizer.zero_grad()
        squared_error(networks, draw(), valid).backward()
        optimizer.step()
        schedule.step()
    return best


def _actions_at(router: ThresholdsRouter, observation: Floats, tradeoffs: Floats) -> Ints:
    """int64 `(N, G)`: what a router does with observations `(N, D)` at each trade-off."""
    obs = observation.copy()
    actions = np.zeros((len(obs), len(tradeoffs)), np.int64)
    for index, tradeoff in enumerate(tradeoffs):
        obs[:, router.spec.layout.tradeoff] = tradeoff
        actions[:, index] = router.actions(obs, deterministic=True)
    return actions
