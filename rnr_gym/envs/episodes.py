"""The rules of the environment, for N episodes at once, without Gymnasium's calling conventions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from rnr_gym.data import ImageSet
from rnr_gym.envs.scene import Scene, sub_path_names
from rnr_gym.routing import rollout
from rnr_gym.routing.observations import observe
from rnr_gym.routing.preferences import Preferences, preferences_of
from rnr_gym.routing.protocols import Indices, Router, RoutingSource, RoutingState
from rnr_gym.routing.rewards import check_reward, check_tradeoff, task_term
from rnr_gym.routing.traversal import Traversal

UNKNOWN = -1
"""What an info says of an outcome that is not there yet."""


class StartOptions(NamedTuple):
    """How an episode is asked to start; what is None is drawn.

    Attributes:
        image_idx: the image, as a position in the source.
        tradeoff: λ.
    """

    image_idx: int | None = None
    tradeoff: float | None = None


class ImageSampler:
    """Draws images without replacement, and trade-offs, for one sub-environment.

    Args:
        num_images: images of the source.
        np_random: the sub-environment's generator.
    """

    def __init__(self, num_images: int, np_random: np.random.Generator) -> None:
        self.num_images = num_images
        self.np_random = np_random
        self.unseen = np.zeros(0, np.int64)

    def sample(
        self,
        tradeoff_range: tuple[float, float],
        options: StartOptions,
    ) -> tuple[int, float]:
        """The image and the trade-off of the next episode.

        Nothing is drawn for what `options` gives, so a given image stays among the unseen ones.
        """
        index = options.image_idx
        if index is None:
            index = self._next_image()

        tradeoff = options.tradeoff
        if tradeoff is None:
            tradeoff = self._draw_tradeoff(*tradeoff_range)
        return index, tradeoff

    def _next_image(self) -> int:
        if len(self.unseen) == 0:
            self.unseen = self.np_random.permutation(self.num_images)
        index = int(self.unseen[-1])
        self.unseen = self.unseen[:-1]
        return index

    def _draw_tradeoff(self, low: float, high: float) -> float:
        """Log-uniform in the range; a single value takes nothing from the generator."""
        if low == high:
            return low
        exponent = self.np_random.uniform(np.log(low), np.log(high))
        return float(np.exp(exponent))


class Transition(NamedTuple):
    """One step of N episodes; zero for those that had terminated before.

    Attributes:
        task: float64 `(N,)`, the task term, given in the step that answers an image.
        compute: float64 `(N,)`, compute charged in this step. The first step of an episode also
            pays for what ran on arrival.
        reward: float64 `(N,)`, task - λ * compute.
        terminated: bool `(N,)`, answered in this very step.
    """

    task: NDArray[np.float64]
    compute: NDArray[np.float64]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]

    @property
    def vector_reward(self) -> NDArray[np.float64]:
        """float64 `(N, 2)`: the pair whose sum weighted by (1, λ) is the reward."""
        return np.stack([self.task, -self.compute], 1)


class Episodes:
    """N episodes over one source.

    `seed` each of them, `begin` them all, then `step` them all; an episode that has terminated does
    not move until it begins again.

    Args:
        source: what is routed.
        num_envs: N.
        tradeoff: λ, or the range that it is drawn from.
        reward: the task term, one of `rewards.REWARDS`.

    Attributes:
        spec: the routing problem.
        samplers: by position, those that have been seeded.
        image_idx: int64 `(N,)`, the image of each episode, as a position in the source.
        tradeoff: float64 `(N,)`, λ of each episode.
        charged: int64 `(N,)`, the cost that rewards have accounted for.
        executed: int64 `(N,)`, the sub-path taken last.
        label: int64 `(N,)`, the true class.
        prediction: int64 `(N,)`, the top class.
        loss: float64 `(N,)`, cross-entropy in nats.

    The last four are `UNKNOWN` until there is a sub-path, or an answer.
    """

    def __init__(
        self,
        source: RoutingSource,
        num_envs: int,
        tradeoff: float | tuple[float, float],
        reward: str,
    ) -> None:
        check_reward(reward)
        self.source = source
        self.spec = source.spec
        self.num_envs = num_envs
        self.reward_kind = reward
        self.tradeoff_range = tradeoff

        self.samplers: dict[int, ImageSampler] = {}
        self.image_idx = np.zeros(num_envs, np.int64)
        self.tradeoff = np.zeros(num_envs)
        self.charged = np.zeros(num_envs, np.int64)
        self.executed = np.full(num_envs, UNKNOWN)
        self.label = np.full(num_envs, UNKNOWN)
        self.prediction = np.full(num_envs, UNKNOWN)
        self.loss = np.full(num_envs, float(UNKNOWN))
        self._state: RoutingState | None = None

    @property
    def state(self) -> RoutingState:
        """The N images in progress; raises `gymnasium.error.ResetNeeded` before the first reset."""
        if self._state is None:
            raise ResetNeeded("call `reset` before `step`, `action_masks` or `render`")
        return self._state

    @property
    def started(self) -> bool:
        """Whether the episodes have begun at least once."""
        return self._state is not None

    @property
    def tradeoff_range(self) -> tuple[float, float]:
        """λ as (low, high), equal if it is one number; a change applies to the next episodes."""
        return self._tradeoff_range

    @tradeoff_range.setter
    def tradeoff_range(self, value: float | tuple[float, float]) -> None:
        self._tradeoff_range = check_tradeoff(value)

    def seed(self, position: int, np_random: np.random.Generator) -> None:
        """Draw the images and trade-offs of one episode from a new generator."""
        self.samplers[position] = ImageSampler(len(self.source.labels), np_random)

    def begin(self, batch_idx: Indices, options: Sequence[StartOptions] | None = None) -> None:
        """Start new episodes at the positions `batch_idx`, each with its options."""
        if options is None:
            options = [StartOptions()] * len(batch_idx)

        # Each episode draws from its own generator, so the order of positions does not matter.
        upcoming = []
        for position, start in zip(batch_idx.tolist(), options, strict=True):
            sampler = self.samplers[position]
            index, tradeoff = sampler.sample(self.tradeoff_range, start)
            # Nothing at the end of a permutation: the next one has not been drawn.
            upcoming += sampler.unseen[-1:].tolist()
            self.image_idx[position] = index
            self.tradeoff[position] = tradeoff

        # What runs on arrival is charged with the first step.
        self.charged[batch_idx] = 0
        for array in (self.executed, self.label, self.prediction, self.loss):
            array[batch_idx] = UNKNOWN
        started = self.source.start(self.image_idx[batch_idx])
        # What comes after these episodes is decoded while they run.
        self.source.prefetch(np.array(upcoming, np.int64))
        # Positions that are not named keep their episodes.
        if self._state is None:
            self._state = started
        else:
            self._state = self._state.replaced(batch_idx, started)

    def step(self, actions: Indices) -> Transition:
        """Execute each action `(N,)`, or the nearest valid one, in every active episode."""
        active = ~self.state.done
        executed = self.spec.executable(self.state.layer, actions)
        # There is no action to execute after an answer; states ignore these entries.
        state = self.state.step(np.where(active, executed, 0))
        self._state = state
        self.executed = np.where(active, executed, self.executed)

        # A copy, since `begin` writes into it and states are immutable.
        charged = self.spec.charged(state)
        compute = self.spec.compute(charged - self.charged)
        self.charged = charged.copy()

        terminated = active & state.done
        task = np.zeros(self.num_envs)
        # Most steps answer no image, and asking a live network for outcomes takes time.
        if terminated.any():
            batch_idx = np.flatnonzero(terminated)
            task[batch_idx] = self._answer(batch_idx)

        return Transition(
            task=task,
            compute=compute,
            reward=task - self.tradeoff * compute,
            terminated=terminated,
        )

    def _answer(self, batch_idx: Indices) -> NDArray[np.float64]:
        """Note how the n episodes at `batch_idx` were answered; their task terms `(n,)`."""
        image_idx = self.image_idx[batch_idx]
        label = self.source.labels[image_idx]
        prediction, loss = self.source.outcome(self.state, image_idx, batch_idx)
        self.label[batch_idx] = label
        self.prediction[batch_idx] = prediction
        self.loss[batch_idx] = loss
        return task_term(self.reward_kind, prediction == label, loss, self.spec.loss_scale)

    def observation(self) -> NDArray[np.float32]:
        """float32 `(N, D)`, a fresh array."""
        return rollout.observation(self.state, self.spec, self.tradeoff)

    def last_observation(self, batch_idx: Indices) -> NDArray[np.float32]:
        """float32 `(n, D)`: the observations of terminated episodes, whose summary is zero."""
        state = self.state
        # Not from `state.summary`, which would pool the features of all other episodes.
        summary = np.zeros((len(batch_idx), self.spec.layout.summary.size), np.float32)
        return observe(
            self.spec.layout,
            summary=summary,
            layer=state.layer[batch_idx],
            prev_sub_path=state.prev_sub_path[batch_idx],
            compute=self.spec.compute(self.spec.charged(state)[batch_idx]),
            tradeoff=self.tradeoff[batch_idx],
        )

    def info(self, batch_idx: Indices) -> dict[str, NDArray]:
        """The entries of an info, fresh arrays `(n, ...)`; the same at any time."""
        state = self.state
        layer = state.layer[batch_idx]
        charged = self.spec.charged(state)[batch_idx]
        label = self.label[batch_idx]
        prediction = self.prediction[batch_idx]
        info = {
            "action_mask": self.spec.masks[layer],
            "layer": layer,
            "compute": self.spec.compute(charged),
            "macs": state.macs[batch_idx],
            "index": self.image_idx[batch_idx],
            "tradeoff": self.tradeoff[batch_idx],
            "executed": self.executed[batch_idx],
            "path": state.path[batch_idx],
            # Before the answer both are unknown, which is no success.
            "is_success": state.done[batch_idx] & (prediction == label),
            "label": label,
            "prediction": prediction,
            "loss": self.loss[batch_idx],
        }
        if self.spec.time_table is not None:
            info["nanoseconds"] = charged
        return info

    def action_masks(self) -> NDArray[np.bool_]:
        """bool `(N, K)`: the actions that are valid now."""
        masks = self.spec.masks[self.state.layer]
        return masks.astype(np.bool_)

    def scene(
        self,
        load_images: Callable[[], ImageSet],
        position: int,
        router: Router | None = None,
    ) -> Scene:
        """One episode as it is drawn; its beliefs and its answer are computed again.

        Args:
            load_images: the images of the source. A `RouteTable` of the user's may be about other
                images than this gives: then the picture stays blank.
            position: of the episode.
            router: whose preferences are drawn.
        """
        batch_idx = np.array([position])
        image_idx = self.image_idx[batch_idx]
        label = int(self.source.labels[image_idx[0]])
        path = self.state.path[position]
        terminated = bool(self.state.done[position])

        # A state knows the beliefs at its present layer only, so the path is taken once more.
        num_sub_paths = int((path >= 0).sum())
        if terminated:
            # The summary is zero after the answer, so this stops one sub-path before it.
            num_sub_paths -= 1
        before_answer = rollout.follow(self.source.start(image_idx), path[:num_sub_paths])
        summary = before_answer.summary()[0]  # (S,)

        prediction = None
        belief = summary[self.spec.layout.summary.exit_probabilities]
        believer: Literal["last exit", "answer"] = "last exit"
        # A route table has no more of an answer than its top class and its loss.
        if terminated and isinstance(self.state, Traversal):
            belief = self.state.logits[position].float().softmax(0).cpu().numpy()
            believer = "answer"
        if terminated:
            outcome = self.source.outcome(self.state, image_idx, batch_idx)
            prediction = int(outcome.prediction[0])

        image = np.zeros((1, 1, 1), np.uint8)
        classes = tuple(str(number) for number in range(self.spec.num_classes))
        images = load_images()
        if np.array_equal(images.labels, self.source.labels):
            image = images.images[image_idx[0]]
            classes = images.classes

        return Scene(
            image=image,
            classes=classes,
            label=label,
            valid=self.spec.valid,
            names=sub_path_names(self.spec),
            path=path,
            compute=float(self.spec.compute(self.spec.charged(self.state))[position]),
            tradeoff=float(self.tradeoff[position]),
            belief=belief,
            believer=believer,
            prediction=prediction,
            preferences=None if router is None else self._preferences(router, position),
        )

    def _preferences(self, router: Router, position: int) -> Preferences | None:
        """What a router thinks of the sub-paths `(T, K)` of each layer reached, NaN elsewhere.

        None if it cannot tell.
        """
        path = self.state.path[position]
        tradeoff = self.tradeoff[[position]]
        values = np.full(self.spec.valid.shape, np.nan)
        told = None
        # From the start, since a router may remember what it has seen of the image.
        state = self.source.start(self.image_idx[[position]])
        episode_start = np.ones(1, np.bool_)
        memory = None
        while not state.done[0]:
            layer = int(state.layer[0])
            obs = rollout.observation(state, self.spec, tradeoff)
            told = preferences_of(router, obs, memory, episode_start)
            if told is None:
                return None
            values[layer] = np.where(self.spec.valid[layer], told.values[0], np.nan)
            if path[layer] < 0:
                break
            _, memory = router.predict(obs, memory, episode_start, deterministic=True)
            state = state.step(path[[layer]].astype(np.int64))
            episode_start = np.zeros(1, np.bool_)
        # An image is answered after one decision at least.
        assert told is not None
        return told._replace(values=values)
