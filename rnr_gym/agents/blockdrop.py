"""BlockDrop: one look at the image decides about all layers at once.

Wu et al., *BlockDrop: Dynamic Inference Paths in Residual Networks* (CVPR 2018): a policy network
gives a probability for every layer before any of them runs, trained by REINFORCE with a self-
critical baseline (the return of the path that is most probable) and a curriculum that frees the
last layers first. Here a layer has several sub-paths rather than two, the policy reads the
observation at layer 0 in place of the image, and the reward is that of the environment, so that one
policy serves every trade-off.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rnr_gym import checks
from rnr_gym.agents import recipes
from rnr_gym.agents.base import FitConfig, RouterBase, check_widths
from rnr_gym.agents.features import policy_inputs
from rnr_gym.agents.reinforce import drawn_batch, entropy, episode_returns
from rnr_gym.progress import progress_bar
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.protocols import Indices, RoutingSource
from rnr_gym.routing.rollout import follow, observation
from rnr_gym.routing.spec import RoutingSpec


@dataclass(frozen=True)
class Config:
    """How a policy is fitted.

    Attributes:
        updates: mini-batches.
        batch_size: images of a mini-batch.
        hidden: width of the policy's hidden layer.
        summary_scale: factor of the raw summary among its inputs; see `features.policy_inputs`.
        learning_rate: of Adam, falling linearly to a tenth.
        weight_decay: of Adam.
        bound: share of the probabilities that the policy decides; the rest is spread evenly over
            the sub-paths, so that none is given up too early.
        entropy: weight of the policy's entropy, without which it settles on a path for good before
            it has seen what others are worth.
        curriculum: share of the mini-batches after which all layers are free.
    """

    updates: int = 3_000
    batch_size: int = 512
    hidden: int = 64
    summary_scale: float = 0.1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    bound: float = 0.8
    entropy: float = 0.003
    curriculum: float = 0.3


CONFIG = Config(hidden=24)
# As for the other learners: the raw summary of 5,000 images is memorised, see `dqn.DQN_CIFAR`.
BY_DATASET = dict.fromkeys(recipes.CIFAR, Config(summary_scale=0.0))
"""Configurations that replace `CONFIG` where images of a data set are routed."""


class PolicyNetwork(nn.Module):
    """Observations at layer 0, float32 `(N, D)` -> logits `(N, T, K)`, -inf where not valid."""

    def __init__(self, spec: RoutingSpec, hidden: int, summary_scale: float) -> None:
        super().__init__()
        self.spec = spec
        self.summary_scale = summary_scale
        blank = torch.zeros(1, spec.layout.size)
        num_inputs = policy_inputs(spec.layout, blank, summary_scale).shape[1]
        self.encoder = nn.Linear(num_inputs, hidden)
        self.decoder = nn.Linear(hidden, spec.num_layers * spec.num_paths)

    def forward(self, observation: Tensor) -> Tensor:
        """Logits of every sub-path at every layer."""
        inputs = policy_inputs(self.spec.layout, observation, self.summary_scale)
        shape = (self.spec.num_layers, self.spec.num_paths)
        logits: Tensor = self.decoder(self.encoder(inputs).relu()).unflatten(1, shape)
        return logits.masked_fill(torch.from_numpy(~self.spec.valid), -torch.inf)


class BlockDropRouter(RouterBase):
    """Chooses a whole path at layer 0, and follows it.

    Attributes:
        network: the policy.
        config: how it was fitted.
    """

    def __init__(self, spec: RoutingSpec, network: PolicyNetwork, config: Config) -> None:
        super().__init__(spec)
        self.network = network
        self.config = config

    @torch.no_grad()
    def predict(
        self,
        observation: NDArray[np.float32],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[np.int64], Any]:
        """The next sub-paths `(N,)`, and the chosen paths int64 `(N, T)` in a tuple."""
        layers = layers_of(self.spec.layout, observation)
        paths = np.full((len(observation), self.spec.num_layers), self.spec.full_path)
        if state is not None:
            paths = state[0].copy()
        # An episode that starts is looked at; nothing is computed for the others.
        starting = np.flatnonzero(layers == 0)
        if len(starting):
            logits = self.network(torch.from_numpy(observation[starting]))
            paths[starting] = logits.argmax(2).numpy()
        return paths[np.arange(len(layers)), layers], (paths,)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The network's tensors, and how it was fitted."""
        return dict(self.network.state_dict()), asdict(self.config)

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
        check_widths("hidden", [restored.hidden], tensors)
        network = policy_network(spec, restored, seed=0)
        network.load_state_dict(tensors)
        return cls(spec, network, restored)


def policy_network(spec: RoutingSpec, config: Config, seed: int) -> PolicyNetwork:
    """The untrained policy of a configuration, with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PolicyNetwork(spec, config.hidden, config.summary_scale)


def fit(fit_config: FitConfig) -> BlockDropRouter:
    """Learn by REINFORCE, with a trade-off that is drawn for each image.

    `fit_config.steps` counts the decisions of all images of all mini-batches.
    """
    source = fit_config.source("route")
    dataset = fit_config.source_kwargs("route").get("dataset")
    config = recipes.for_dataset(dataset, CONFIG, BY_DATASET)
    if fit_config.steps is not None:
        steps_per_update = config.batch_size * source.spec.num_layers
        config = replace(config, updates=max(1, fit_config.steps // steps_per_update))

    learner = Learner(source, config, fit_config.seed, fit_config.tradeoffs)
    title = f"blockdrop seed {fit_config.seed}"
    for _ in progress_bar(range(config.updates), desc=title, disable=not fit_config.progress):
        learner.update()
    return BlockDropRouter(source.spec, learner.network, config)


class Learner:
    """Draws images, sends each down two paths, and makes the better one more probable.

    Args:
        source: what is routed.
        config: how the policy is fitted.
        seed: of weights, images, trade-offs and paths.
        tradeoffs: λ is drawn for each image from (low, high), uniformly on a logarithmic scale.

    Attributes:
        network: the policy.
        updates: mini-batches so far.
    """

    def __init__(
        self,
        source: RoutingSource,
        config: Config,
        seed: int,
        tradeoffs: tuple[float, float],
    ) -> None:
        self.source = source
        self.config = config
        self.tradeoffs = tradeoffs
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.network = policy_network(source.spec, config, seed)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.updates = 0

    def update(self) -> None:
        """Learn from one mini-batch."""
        progress = self.updates / self.config.updates
        self.optimizer.param_groups[0]["lr"] = self.config.learning_rate * (1.0 - 0.9 * progress)

        source = self.source
        batch = drawn_batch(source, self.config.batch_size, self.tradeoffs, self.rng)
        start = source.start(batch.image_idx)
        obs = observation(start, source.spec, batch.tradeoffs)

        logits = self.network(torch.from_numpy(obs))  # (N, T, K)
        drawn, greedy = self.paths(logits.detach())
        gain = episode_returns(source, follow(start, drawn), batch)
        gain = gain - episode_returns(source, follow(start, greedy), batch)

        log_probability = self.log_probability(logits, drawn)  # (N, T)
        counts = torch.from_numpy(self.decided(drawn))
        loss = -(log_probability * counts).sum(1) * torch.from_numpy(gain).float()
        loss = loss - self.config.entropy * (entropy(logits) * counts).sum(1)
        self.optimizer.zero_grad()
        loss.mean().backward()
        self.optimizer.step()
        self.updates += 1

    @property
    def first_free(self) -> int:
        """The first layer that the policy decides about; those before take the full sub-path."""
        num_layers = self.source.spec.num_layers
        share = self.updates / max(1.0, self.config.curriculum * self.config.updates)
        return max(0, num_layers - 1 - int(share * num_layers))

    def paths(self, logits: Tensor) -> tuple[Indices, Indices]:
        """int64 `(N, T)` each: paths drawn from the bounded policy, and the most probable ones."""
        weights = self.bounded(logits).flatten(0, 1)  # (N * T, K)
        drawn = torch.multinomial(weights, 1, generator=self.generator)
        paths = []
        for choice in (drawn.view(logits.shape[:2]), logits.argmax(2)):
            path = choice.numpy().copy()
            path[:, : self.first_free] = self.source.spec.full_path
            paths.append(path)
        return paths[0], paths[1]

    def bounded(self, logits: Tensor) -> Tensor:
        """Probabilities `(N, T, K)`, none of which comes close to 0 where a sub-path is valid."""
        valid = torch.from_numpy(self.source.spec.valid).float()  # (T, K)
        even = valid / valid.sum(1, keepdim=True)
        return self.config.bound * logits.softmax(2) + (1.0 - self.config.bound) * even

    def log_probability(self, logits: Tensor, paths: Indices) -> Tensor:
        """float32 `(N, T)`: of each decision of the paths `(N, T)`."""
        index = torch.from_numpy(paths)[..., None]
        return self.bounded(logits).gather(2, index)[..., 0].log()

    def decided(self, paths: Indices) -> NDArray[np.bool_]:
        """bool `(N, T)`: which decisions the policy made: free ones, up to an exit."""
        spec = self.source.spec
        decided = np.ones(paths.shape, np.bool_)
        decided[:, : self.first_free] = False
        # A decision counts if no exit came before it.
        exits = np.zeros(paths.shape, np.bool_)
        exits[:, 1:] = np.cumsum(paths[:, :-1] < spec.first_sub_path, axis=1) > 0
        return decided & ~exits
