"""The paper's own router: Q-learning with a recurrent cell that reads the network layer by layer.

Rao et al., *Runtime Network Routing for Efficient Image Classification* (TPAMI 2019). What differs
from the paper is a switch of `Config`, so that each difference can be measured: MACs are charged
instead of counting channel groups, the answer's term is its accuracy instead of its scaled loss,
and one network serves every trade-off, which it observes. Targets are those of double Q-learning
(van Hasselt et al. 2016), from whole episodes in a replay buffer (Hausknecht and Stone 2015).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from rnr_gym import checks, storage
from rnr_gym.agents import recipes
from rnr_gym.agents.base import CHECKPOINT, FitConfig, check_widths
from rnr_gym.agents.recurrent import RecurrentRouter, cleared
from rnr_gym.agents.rnr_dqn_network import QNetwork, masked
from rnr_gym.agents.rnr_dqn_replay import Episodes, Replay
from rnr_gym.progress import progress_bar
from rnr_gym.routing.observations import layers_of
from rnr_gym.routing.protocols import Indices
from rnr_gym.routing.spec import RoutingSpec


@dataclass(frozen=True)
class Config:
    """How a router is fitted, and what is learned.

    Attributes:
        steps: environment steps.
        num_envs: episodes that run in parallel, with one mini-batch after each of their steps.
        embedding: width of what an encoder gives.
        hidden: width of the recurrent state.
        summary_scale: factor of the raw summary among the inputs; see `features.policy_inputs`.
        learning_rate: of Adam, falling linearly to a tenth.
        weight_decay: of Adam, against memorising the images of `route`.
        batch_size: episodes of a mini-batch.
        capacity: episodes that are replayed.
        learning_starts: episodes before the first mini-batch.
        target_every: mini-batches after which the target network is renewed.
        epsilon: probability of a random sub-path, at first and in the end.
        exploration: share of the steps in which that falls, linearly.
        n_step: decisions whose rewards enter a target before an estimate does; from T on, all of
            them do.
        cut: whether an estimate takes over before that where the episode did not take the best
            sub-path by present estimates (Watkins 1989), so that exploring does not make what
            follows look worse than it is.
        charge: `"macs"`, or `"groups"` for the paper's penalty, by which the i-th sub-path costs
            the same at every layer whatever its MACs.
        reward: `"accuracy"`, or `"cross_entropy"` for the paper's answer term.
        two_heads: whether the task term and compute to go are estimated separately, and weighed by
            λ at run time, instead of the return, which depends on an observed λ.
        recurrent: whether the network remembers earlier layers.
    """

    steps: int = 400_000
    num_envs: int = 128
    embedding: int = 64
    hidden: int = 64
    summary_scale: float = 0.1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    batch_size: int = 256
    capacity: int = 40_000
    learning_starts: int = 2_000
    target_every: int = 200
    epsilon: tuple[float, float] = (1.0, 0.1)
    exploration: float = 0.5
    n_step: int = 5
    cut: bool = True
    charge: Literal["macs", "groups"] = "macs"
    reward: Literal["accuracy", "cross_entropy"] = "accuracy"
    two_heads: bool = False
    recurrent: bool = True


# The digits' backbones are so small that a wider network would cost a noticeable share of them.
CONFIG = Config(embedding=24, hidden=24)
# As for the other learners: the raw summary of 5,000 images is memorised, see `dqn.DQN_CIFAR`.
CIFAR = Config(summary_scale=0.0)
BY_DATASET = dict.fromkeys(recipes.CIFAR, CIFAR)
"""Configurations that replace `CONFIG` where images of a data set are routed."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "rnr-dqn-groups": {"charge": "groups"},
    "rnr-dqn-loss": {"reward": "cross_entropy"},
    "rnr-dqn-two-heads": {"two_heads": True},
    "rnr-dqn-memoryless": {"recurrent": False},
}
"""Agents that differ from `rnr-dqn` in one switch, to measure what it does."""


class RnrDqnRouter(RecurrentRouter):
    """Takes the sub-path with the highest estimate of the return."""

    @classmethod
    def from_state_dict(
        cls,
        spec: RoutingSpec,
        tensors: dict[str, Tensor],
        config: dict[str, Any],
    ) -> Self:
        """The router whose `state_dict` returned `tensors` and `config`."""
        restored = Config(**{**config, "epsilon": tuple(config["epsilon"])})
        widths = [restored.embedding, restored.hidden]
        if restored.recurrent:
            widths.append(restored.hidden)
        checks.number("summary_scale", restored.summary_scale, 0.0)
        check_widths("embedding", widths, tensors)
        network = q_network(spec, restored, seed=0)
        network.load_state_dict(tensors)
        return cls(spec, network, restored)


def fit(fit_config: FitConfig, config: Config | None = None) -> RnrDqnRouter:
    """Learn to route, with a trade-off that is drawn for each episode.

    With a `run_dir`, checkpoints are written there, and the learner resumes from the checkpoint if
    there is one. The replay buffer is not in it: a resumed learner fills it again.

    Args:
        fit_config: what the router is fitted to.
        config: how; None for the configuration of its data set.
    """
    kwargs = fit_config.source_kwargs("route")
    if config is None:
        config = config_for(kwargs.get("dataset"))
    if fit_config.steps is not None:
        config = replace(config, steps=fit_config.steps)

    spec = fit_config.source("route").spec
    learner = Learner(spec, config, fit_config.seed)
    checkpoint = None
    if fit_config.run_dir is not None:
        checkpoint = fit_config.run_dir / CHECKPOINT
        learner.resume(checkpoint)

    envs = gym.make_vec(
        fit_config.env,
        num_envs=config.num_envs,
        autoreset_mode=AutoresetMode.SAME_STEP,
        tradeoff=fit_config.tradeoffs,
        reward=config.reward,
        vector_reward=True,
        **kwargs,
    )
    learner.learn(envs, checkpoint, fit_config.progress)
    envs.close()
    return RnrDqnRouter(spec, learner.online.eval(), config)


def fit_ablation(fit_config: FitConfig, name: str) -> RnrDqnRouter:
    """As `fit`, with the switch of `ABLATIONS[name]` changed."""
    config = config_for(fit_config.source_kwargs("route").get("dataset"))
    return fit(fit_config, replace(config, **ABLATIONS[name]))


def config_for(dataset: object) -> Config:
    """The configuration for a data set."""
    return recipes.for_dataset(dataset, CONFIG, BY_DATASET)


def q_network(spec: RoutingSpec, config: Config, seed: int) -> QNetwork:
    """The untrained network of a configuration, with seeded random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return QNetwork(
            spec,
            embedding=config.embedding,
            hidden=config.hidden,
            summary_scale=config.summary_scale,
            recurrent=config.recurrent,
            two_heads=config.two_heads,
        )


class Learner:
    """Collects episodes and learns from them.

    Args:
        spec: the routing problem.
        config: what is learned, and how.
        seed: of weights, exploration, mini-batches and episodes.

    Attributes:
        online: the network that is trained, and decides.
        target: its copy of `target_every` mini-batches ago.
        steps: environment steps so far.
        updates: mini-batches so far.
    """

    def __init__(self, spec: RoutingSpec, config: Config, seed: int) -> None:
        self.spec = spec
        self.config = config
        self.seed = seed
        self.online = q_network(spec, config, seed)
        self.target = q_network(spec, config, seed)
        self.optimizer = torch.optim.Adam(
            self.online.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.replay = Replay(
            config.num_envs,
            config.capacity,
            num_layers=spec.num_layers,
            num_inputs=len(self.online.columns),
        )
        self.steps = 0
        self.updates = 0

    def learn(self, envs: gym.vector.VectorEnv, checkpoint: Path | None, progress: bool) -> None:
        """Step through the environments and learn, until all steps have been made."""
        config = self.config
        # After a checkpoint other draws than before it, so that nothing is seen twice.
        seed = self.seed + self.steps
        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        obs, _ = envs.reset(seed=seed)
        memory = np.zeros((config.num_envs, config.hidden), np.float32)

        bar = progress_bar(
            total=config.steps,
            initial=self.steps,
            desc=f"rnr-dqn seed {self.seed}",
            unit="step",
            disable=not progress,
        )
        while self.steps < config.steps:
            obs, memory = self._collect(envs, obs, memory, rng)
            self.steps += config.num_envs
            bar.update(config.num_envs)

            if self.replay.size >= config.learning_starts:
                self._update(self.replay.sample(config.batch_size, generator))
                if checkpoint is not None and self.updates % CHECKPOINT_EVERY == 0:
                    self.save(checkpoint)
        bar.close()

    def _collect(
        self,
        envs: gym.vector.VectorEnv,
        obs: NDArray[np.float32],
        memory: NDArray[np.float32],
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One step of every environment, by epsilon-greedy choice; next observations and memory."""
        layer = layers_of(self.spec.layout, obs)
        memory = cleared(self.spec, obs, memory)
        actions, memory = self.online.decide(obs, memory)

        # Among valid sub-paths the highest random number wins.
        drawn = np.where(self.spec.valid[layer], rng.random((len(obs), self.spec.num_paths)), -1.0)
        explores = rng.random(len(obs)) < self.epsilon
        actions = np.where(explores, drawn.argmax(1), actions)

        next_obs, rewards, terminated, _, _ = envs.step(actions)
        self.replay.record(
            layer,
            self.online.inputs(torch.from_numpy(obs)),
            tradeoff=obs[:, self.spec.layout.tradeoff.start],
            action=actions,
            task=rewards[:, 0],
            charge=self._charge(layer, actions, rewards),
            terminated=terminated,
        )
        return next_obs, memory

    @property
    def epsilon(self) -> float:
        """The probability of a random sub-path now."""
        first, last = self.config.epsilon
        share = self.steps / (self.config.exploration * self.config.steps)
        return first + (last - first) * min(1.0, share)

    def _charge(
        self,
        layer: Indices,
        actions: Indices,
        rewards: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """float64 `(N,)`: what a step costs; about 1 for the whole full path."""
        if self.config.charge == "macs":
            return -rewards[:, 1]
        # As in the paper, the cheapest sub-path is free, and so is the exit.
        first = self.spec.first_sub_path
        group = np.maximum(actions - first, 0)
        return group / ((self.spec.full_path - first) * self.spec.num_layers)

    def _update(self, episodes: Episodes) -> None:
        """Learn from one mini-batch."""
        progress = min(1.0, self.steps / self.config.steps)
        self.optimizer.param_groups[0]["lr"] = self.config.learning_rate * (1.0 - 0.9 * progress)

        values = self.online.along(episodes.inputs)  # (B, T, K, V)
        taken = _picked(values, episodes.action)  # (B, T, V)
        with torch.no_grad():
            targets = self.targets(episodes, values)
        error = (taken - targets)[_within(episodes)]

        self.optimizer.zero_grad()
        error.square().mean().backward()
        self.optimizer.step()

        self.updates += 1
        if self.updates % self.config.target_every == 0:
            self.target.load_state_dict(self.online.state_dict())

    def targets(self, episodes: Episodes, values: Tensor) -> Tensor:
        """float32 `(B, T, V)`: the next rewards, and an estimate where they end or are cut.

        The online network's `values` `(B, T, K, V)` choose the sub-path that the target network
        estimates, so that no maximum is taken over noisy estimates.
        """
        returns = masked(self.online.returns(values, episodes.tradeoff), self.spec.valid)
        best = returns.argmax(2)  # (B, T)
        estimates = _picked(self.target.along(episodes.inputs), best)
        # Nothing follows the end of an episode.
        estimates = estimates * _within(episodes)[..., None]

        rewards = self._rewards(episodes)
        estimated = _next(estimates)
        # Along sub-paths that a router would take now; others say nothing about its returns.
        follows = torch.ones_like(episodes.action, dtype=torch.bool)
        if self.config.cut:
            follows = best == episodes.action
        targets = rewards + estimated
        for _ in range(self.config.n_step - 1):
            targets = rewards + torch.where(_next(follows)[..., None], _next(targets), estimated)
        return targets

    def _rewards(self, episodes: Episodes) -> Tensor:
        """float32 `(B, T, V)`: what each step earned, in the form that the network estimates."""
        if self.config.two_heads:
            return torch.stack([episodes.task, -episodes.charge], 2)
        return (episodes.task - episodes.tradeoff * episodes.charge)[..., None]

    def save(self, path: Path) -> None:
        """Write networks, optimizer and counts."""
        state = {
            "online": self.online.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
        }
        tensors, leaves = storage.flattened(state)
        metadata = {
            "config": asdict(self.config),
            "leaves": leaves,
            "steps": self.steps,
            "updates": self.updates,
        }
        storage.save_tensors(path, tensors, metadata)

    def resume(self, path: Path) -> None:
        """Continue from what `save` wrote, if there is something.

        Raises `ValueError` if it was written with another configuration.
        """
        if not path.exists():
            return

        tensors, metadata = storage.load_tensors(path)
        config = {**asdict(self.config), "epsilon": list(self.config.epsilon)}
        if metadata.get("config") != config:
            raise ValueError(
                "`run_dir` must hold a run with the same configuration, got "
                f"{str(path.parent)!r}, begun with {metadata.get('config')}"
            )
        state = storage.nested(tensors, metadata["leaves"])
        self.online.load_state_dict(state["online"])
        self.target.load_state_dict(state["target"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self.steps = metadata["steps"]
        self.updates = metadata["updates"]


CHECKPOINT_EVERY = 500
"""Mini-batches between two checkpoints."""


def _picked(values: Tensor, actions: Tensor) -> Tensor:
    """Values `(B, T, V)` of the actions `(B, T)` among values `(B, T, K, V)`."""
    index = actions[..., None, None].expand(-1, -1, 1, values.shape[-1])
    return values.gather(2, index)[:, :, 0]


def _next(values: Tensor) -> Tensor:
    """`(B, T, ...)`: at each decision the value of the next one; zero at the last."""
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)


def _within(episodes: Episodes) -> Tensor:
    """bool `(B, T)`: which decisions an episode has."""
    num_layers = episodes.action.shape[1]
    return torch.arange(num_layers) < episodes.length[:, None]
