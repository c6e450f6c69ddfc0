"""SkipNet: a recurrent gate before every layer, trained softly first and by REINFORCE then.

Wang et al., *SkipNet: Learning Dynamic Routing in Convolutional Networks* (ECCV 2018): gates are
first trained with soft decisions, by gradients through everything that a decision leads to, then
with hard ones by policy gradients, since soft gates are not what is deployed. There the outputs of
a block and its shortcut are mixed; here, where the backbone is frozen, the outcomes of all paths
are, weighted by how probable the gates make them. A route table has these outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from rnr_gym import checks
from rnr_gym.agents import recipes
from rnr_gym.agents.base import FitConfig, check_widths, needs_table
from rnr_gym.agents.recurrent import RecurrentRouter
from rnr_gym.agents.reinforce import Batch, drawn_batch, entropy, episode_returns
from rnr_gym.agents.rnr_dqn_network import QNetwork, masked
from rnr_gym.progress import progress_bar
from rnr_gym.routing.observations import layers_of, observe
from rnr_gym.routing.preferences import Preferences
from rnr_gym.routing.protocols import Indices
from rnr_gym.routing.rollout import observation, route
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.spec import RoutingSpec


@dataclass(frozen=True)
class Config:
    """How gates are fitted.

    Attributes:
        soft_updates: mini-batches with soft decisions.
        soft_batch_size: images of such a mini-batch, each of which takes every path.
        hard_updates: mini-batches with hard decisions, after those.
        hard_batch_size: images of such a mini-batch.
        embedding: width of what a layer's encoder gives.
        hidden: width of the recurrent cell.
        summary_scale: factor of the raw summary among the inputs; see `features.policy_inputs`.
        learning_rate: of Adam, falling linearly to a tenth over each of the two stages.
        weight_decay: of Adam.
        entropy: weight of the gates' entropy, without which they settle on the glance: most is at
            stake at high trade-offs, where it is best, and a gate that is sure learns no more.
        full_path_bias: by how much the full path's logits exceed the others at first: gates start
            open, as in the paper.
    """

    soft_updates: int = 1_500
    soft_batch_size: int = 32
    hard_updates: int = 1_000
    hard_batch_size: int = 512
    embedding: int = 64
    hidden: int = 64
    summary_scale: float = 0.1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    entropy: float = 0.005
    full_path_bias: float = 3.0


CONFIG = Config(embedding=24, hidden=24)
# As for the other learners: the raw summary of 5,000 images is memorised, see `dqn.DQN_CIFAR`.
BY_DATASET = dict.fromkeys(recipes.CIFAR, Config(summary_scale=0.0))
"""Configurations that replace `CONFIG` where images of a data set are routed."""


class SkipNetRouter(RecurrentRouter):
    """Takes the sub-path that a layer's gate, a logit for each sub-path, makes most probable."""

    def preferences(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
    ) -> Preferences:
        """The probabilities of the gate, sub-paths that are not offered left out."""
        logits = super().preferences(observation, state, episode_start).values
        valid = self.spec.valid[layers_of(self.spec.layout, observation)]  # (N, K)
        return Preferences("probability", softmax(np.where(valid, logits, -np.inf), axis=1))

    @classmethod
    def from_state_dict(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> Self:
        """The router whose `state_dict` returned `tensors` and `config`."""
        restored = Config(**config)
        checks.number("summary_scale", restored.summary_scale, 0.0)
        check_widths("embedding", [restored.embedding, restored.hidden, restored.hidden], tensors)
        network = gates(spec, restored, seed=0)
        network.load_state_dict(tensors)
        return cls(spec, network, restored)


def gates(spec: RoutingSpec, config: Config, seed: int) -> QNetwork:
    """The untrained gates of a configuration, with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return QNetwork(
            spec,
            embedding=config.embedding,
            hidden=config.hidden,
            summary_scale=config.summary_scale,
            recurrent=True,
            two_heads=False,
        )


def fit(fit_config: FitConfig) -> SkipNetRouter:
    """Fit to the route table of `route`; raises `ValueError` where there is none.

    `fit_config.steps` counts the hard decisions of all images of all mini-batches; as many
    mini-batches are soft as in the configuration, in proportion.
    """
    table = fit_config.table("route")
    if table is None:
        raise ValueError(needs_table("skipnet", fit_config.env))
    dataset = fit_config.source_kwargs("route").get("dataset")
    config = recipes.for_dataset(dataset, CONFIG, BY_DATASET)
    if fit_config.steps is not None:
        steps_per_update = config.hard_batch_size * table.spec.num_layers
        hard_updates = max(1, fit_config.steps // steps_per_update)
        soft_updates = round(hard_updates * config.soft_updates / config.hard_updates)
        config = replace(config, hard_updates=hard_updates, soft_updates=soft_updates)

    learner = Learner(table, config, fit_config.seed, fit_config.tradeoffs)
    title = f"skipnet seed {fit_config.seed}"
    total = config.soft_updates + config.hard_updates
    with progress_bar(total=total, desc=title, disable=not fit_config.progress) as bar:
        for number in range(config.soft_updates):
            learner.update_soft(number / config.soft_updates)
            bar.update()
        for number in range(config.hard_updates):
            learner.update_hard(number / config.hard_updates)
            bar.update()
    return SkipNetRouter(table.spec, learner.network, config)


class Learner:
    """Trains gates on a route table.

    Args:
        table: outcomes of every path.
        config: how gates are fitted.
        seed: of weights, images, trade-offs and decisions.
        tradeoffs: λ is drawn for each image from (low, high), uniformly on a logarithmic scale.

    Attributes:
        network: the gates.
    """

    def __init__(
        self,
        table: RouteTable,
        config: Config,
        seed: int,
        tradeoffs: tuple[float, float],
    ) -> None:
        self.table = table
        self.spec = table.spec
        self.config = config
        self.tradeoffs = tradeoffs
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.network = gates(table.spec, config, seed)
        with torch.no_grad():
            self.network.decoder.bias[self.spec.full_path] += config.full_path_bias
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )

    def update_soft(self, progress: float) -> None:
        """Learn from the expected return of a mini-batch; `progress` through the stage is 0..1."""
        batch = self._batch(self.config.soft_batch_size)
        expected, total_entropy = self.expected_returns(batch)
        self._minimise(-(expected + self.config.entropy * total_entropy).mean(), progress)

    def update_hard(self, progress: float) -> None:
        """Learn from drawn paths of a mini-batch, against the most probable ones."""
        batch = self._batch(self.config.hard_batch_size)
        state, log_probability, total_entropy = self.drawn(batch)
        gain = episode_returns(self.table, state, batch) - self.greedy_returns(batch)
        loss = -log_probability * torch.from_numpy(gain).float()
        self._minimise((loss - self.config.entropy * total_entropy).mean(), progress)

    def expected_returns(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean over all paths, weighted by their probabilities, of return and entropy.

        float32 `(N,)` each.
        """
        table = self.table
        tree = table.tree
        tradeoffs = torch.from_numpy(batch.tradeoffs).float()
        images = len(batch.image_idx)
        correct = torch.from_numpy(table.correct[:, batch.image_idx]).float()  # (E, N)
        compute = torch.from_numpy(table.compute).float()  # (E,)
        answers = correct - tradeoffs * compute[:, None]  # (E, N)

        node = np.zeros(1, np.int64)
        reach = torch.ones(1, images)
        memory = torch.zeros(1, images, self.network.hidden)
        expected = torch.zeros(images)
        total_entropy = torch.zeros(images)
        for layer in range(self.spec.num_layers):
            obs = self._observed(node, batch)
            values, after = self.network(self.network.inputs(obs), layer, memory.flatten(0, 1))
            after = after.unflatten(0, (len(node), images))
            logits = masked(values[..., 0], self.spec.valid[layer])
            probability = logits.softmax(1).unflatten(0, (len(node), images))  # (n, N, K)
            reached = reach[..., None] * probability
            decision_entropy = entropy(logits).unflatten(0, (len(node), images))
            total_entropy = total_entropy + (reach * decision_entropy).sum(0)

            child = tree.child[node]  # (n, K), -1 for sub-paths that are not valid
            at, sub_path = np.nonzero(child >= table.num_prefixes)
            answer = child[at, sub_path] - table.num_prefixes
            expected = expected + (reached[at, :, sub_path] * answers[answer]).sum(0)

            at, sub_path = np.nonzero((child >= 0) & (child < table.num_prefixes))
            node = child[at, sub_path]
            reach = reached[at, :, sub_path]
            memory = after[at]
        return expected, total_entropy

    def drawn(self, batch: Batch) -> tuple[Any, Tensor, Tensor]:
        """Paths drawn from the gates.

        Returns:
            The state in which their episodes end; and, float32 `(N,)` each, the logarithm of the
            probability of an image's path, and the entropy of its decisions.
        """
        images = len(batch.image_idx)
        state = self.table.start(batch.image_idx)
        memory = torch.zeros(images, self.network.hidden)
        log_probability = torch.zeros(images)
        total_entropy = torch.zeros(images)
        for layer in range(self.spec.num_layers):
            obs = torch.from_numpy(observation(state, self.spec, batch.tradeoffs))
            values, memory = self.network(self.network.inputs(obs), layer, memory)
            logits = masked(values[..., 0], self.spec.valid[layer])
            chosen = torch.multinomial(logits.detach().softmax(1), 1, generator=self.generator)

            # Nothing is decided for images that have been answered.
            waiting = torch.from_numpy(~state.done)
            decision = logits.log_softmax(1).gather(1, chosen)[:, 0]
            log_probability = log_probability + decision * waiting
            total_entropy = total_entropy + entropy(logits) * waiting
            state = state.step(chosen[:, 0].numpy())
        return state, log_probability, total_entropy

    def greedy_returns(self, batch: Batch) -> NDArray[np.float64]:
        """float64 `(N,)`: the returns of the most probable paths."""
        router = SkipNetRouter(self.spec, self.network, self.config)
        state = route(self.table.start(batch.image_idx), self.spec, router, batch.tradeoffs)
        return episode_returns(self.table, state, batch)

    def _batch(self, size: int) -> Batch:
        return drawn_batch(self.table, size, self.tradeoffs, self.rng)

    def _observed(self, node: Indices, batch: Batch) -> Tensor:
        """float32 `(n * N, D)`: what is seen of every image at every one of n prefixes."""
        tree = self.table.tree
        images = len(batch.image_idx)
        nodes = np.repeat(node, images)
        image_idx = np.tile(batch.image_idx, len(node))
        obs = observe(
            self.spec.layout,
            summary=self.table.summary[nodes, image_idx],
            layer=tree.layer[nodes],
            prev_sub_path=tree.prev_sub_path[nodes],
            compute=self.spec.compute(tree.cost[nodes]),
            tradeoff=np.tile(batch.tradeoffs, len(node)),
        )
        return torch.from_numpy(obs)

    def _minimise(self, loss: Tensor, progress: float) -> None:
        self.optimizer.param_groups[0]["lr"] = self.config.learning_rate * (1.0 - 0.9 * progress)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
