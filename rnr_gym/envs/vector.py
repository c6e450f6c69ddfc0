"""The environment for N images at once: one batched pass where N scalar environments would make N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rnr_gym.envs.episodes import Dealing, ImageSampler, Episodes
from rnr_gym.envs.rendering import frame
from rnr_gym.envs.routing import RoutingEnv, check_arguments, check_index, check_options, observation_space, reward_space
from rnr_gym.routing.protocols import Rows
from rnr_gym.routing.rewards import check_tradeoff
from rnr_gym.routing.sources import SourceArguments, open_images, open_source

Infos = dict[str, Any]


class RoutingVectorEnv(Dealing, gym.vector.VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]):
    """N episodes of `RoutingEnv` side by side: number for number what a `SyncVectorEnv` of N scalar ones gives.

    Every sub-environment has its own generator, seeded with seed + i. `reset` takes `options` with `"index"` and
    `"tradeoff"`, each one value or `(N,)` of them, and `"reset_mask"`, bool `(N,)`. Rewards are float64 `(N,)`, with
    `vector_reward` `(N, 2)`. After `make_vec(..., render_mode="rgb_array")`, `render` gives a frame for each.

    Args:
        num_envs: N.
        autoreset_mode: any of Gymnasium's three; next-step, as usual there, by default.
        tradeoff, reward, vector_reward, source: as for `RoutingEnv`.
        render_mode: None or "rgb_array".
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        tradeoff: float | tuple[float, float] = 0.3,
        reward: str = "accuracy",
        vector_reward: bool = False,
        render_mode: str | None = None,
        **source: Unpack[SourceArguments],
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"`num_envs` must be a whole number above 0, got {num_envs!r}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"`render_mode` must be None or rgb_array, got {render_mode!r}")
        self.num_envs, self.vector_reward, self.render_mode = num_envs, vector_reward, render_mode
        self.decks = []
        self.tradeoff = tradeoff
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**RoutingEnv.metadata, "autoreset_mode": self.autoreset_mode}
        source.pop("disable_env_checker", None)  # type: ignore[typeddict-item]  # Gymnasium's `make_vec` may pass it on
        check_arguments(source)
        self.source = open_source(**source)
        self.episodes = Episodes(self.source, reward, num_envs)
        self.single_observation_space = observation_space(self.routing)
        self.single_action_space = gym.spaces.Discrete(self.routing.num_paths)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if vector_reward:
            self.reward_space = batch_space(reward_space(self.routing, reward), num_envs)
        self._images = partial(open_images, **source)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each sub-environment."""
        return tuple(deck.random for deck in self.decks)

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], Infos]:
        """Start N episodes, or those that `options["reset_mask"]` picks."""
        chosen = check_options(options, ("index", "tradeoff", "reset_mask"))
        rows = self._picked(chosen.pop("reset_mask", None))
        self._seed(rows, seed)
        self._begin(rows, chosen)
        return self.episodes.observation(), self._batched(self.episodes.going_info(), rows, rows)

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], Infos]:
        """Execute one action a sub-environment, int `(N,)`."""
        actions = self._checked(actions)
        over, everyone = np.flatnonzero(self._over()), np.arange(self.num_envs)
        if len(over) and self.autoreset_mode == AutoresetMode.DISABLED:
            raise gym.error.ResetNeeded(f'`step` needs episodes under way, those of {over.tolist()} have ended; reset with `options["reset_mask"]`')
        moved = self.episodes.step(actions)
        ended, stepped = np.flatnonzero(moved.ended), np.setdiff1d(everyone, over, assume_unique=True)
        rewards = self._rewards(moved.task, moved.spent)
        last = {"executed": moved.executed[ended], **self.episodes.ended_info()} if len(ended) else {}
        infos: Infos = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and len(ended):
            infos |= self._final(ended, last)
            stepped, last = np.setdiff1d(stepped, ended, assume_unique=True), {}
            self._begin(ended, {})
        elif self.autoreset_mode == AutoresetMode.NEXT_STEP and len(over):
            self._begin(over, {})
        infos |= self._batched(self.episodes.going_info(), everyone, everyone)
        if len(stepped):
            infos |= self._batched({"executed": moved.executed}, stepped, stepped)
        infos |= self._batched({name: part for name, part in last.items() if name != "executed"}, ended)
        return self.episodes.observation(), rewards, moved.ended, np.zeros(self.num_envs, np.bool_), infos

    def action_masks(self) -> NDArray[np.bool_]:
        """bool `(N, K)`: the actions offered to each."""
        if self.episodes.walk is None:
            raise gym.error.ResetNeeded("`action_masks` needs an episode; call `reset` first")
        return self.routing.masks[self.episodes.walk.layer].astype(np.bool_)

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """A frame uint8 `(270, 720, 3)` for each sub-environment; None without a `render_mode`."""
        if self.render_mode is None:
            return None
        if self.episodes.walk is None:
            raise gym.error.ResetNeeded("`render` needs an episode; call `reset` first")
        return tuple(frame(self.episodes.scene(self._images(), row)) for row in range(self.num_envs))

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method, or read an attribute; one result a sub-environment."""
        value = getattr(self, name)
        result = value(*args, **kwargs) if callable(value) else value
        return tuple(result) if name in ("action_masks", "np_random", "render") and result is not None else (result,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute, once for each sub-environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute, `tradeoff` say, which all sub-environments share: a list must hold one and the same value N times."""
        if isinstance(values, list):
            if len(values) != self.num_envs or any(value != values[0] for value in values):
                raise ValueError(f"`values` must be one value, or it {self.num_envs} times, since sub-environments share `{name}`, got {values!r}")
            values = values[0]
        setattr(self, name, values)

    def _over(self) -> NDArray[np.bool_]:
        if self.episodes.walk is None:
            raise gym.error.ResetNeeded("`step` needs episodes under way; call `reset` first")
        return self.episodes.walk.done

    def _checked(self, actions: Any) -> NDArray[np.int64]:
        array = np.asarray(actions)
        if array.shape != (self.num_envs,) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"`actions` must be whole numbers of shape ({self.num_envs},), got {array.dtype} {array.shape}")
        if array.min() < 0 or array.max() >= self.routing.num_paths:
            raise ValueError(f"`actions` must lie in 0..{self.routing.num_paths - 1}, got {array.tolist()}")
        return array.astype(np.int64)

    def _picked(self, mask: Any) -> Rows:
        if mask is None:
            return np.arange(self.num_envs)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f'`options["reset_mask"]` must be bool ({self.num_envs},) with at least one True, got {mask!r}')
        if self.episodes.walk is None and not mask.all():
            raise gym.error.ResetNeeded("the first `reset` must start every sub-environment")
        return np.flatnonzero(mask)

    def _seed(self, rows: Rows, seed: int | Sequence[int | None] | None) -> None:
        """A new deck for each row that is given a seed; for all of them where there are none yet."""
        seeds = self._seeds(seed)
        fresh = not self.decks
        decks: list[Any] = self.decks or [None] * self.num_envs
        for row in range(self.num_envs) if fresh else rows:
            if fresh or seeds[row] is not None:
                decks[row] = ImageSampler(len(self.source.labels), self.tradeoff, gym.utils.seeding.np_random(seeds[row])[0])
        self.decks = decks

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + row for row in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"`seed` must be a number or {self.num_envs} of them, got {len(seed)}")
        return list(seed)

    def _each(self, chosen: Mapping[str, Any], name: str) -> Any:
        """An option's value for each sub-environment, None where it was not given."""
        value: Any = chosen.get(name)
        if np.shape(value) not in ((), (self.num_envs,)):
            raise ValueError(f'`options["{name}"]` must be one value or {self.num_envs} of them, got {value!r}')
        return np.broadcast_to(value, self.num_envs)

    def _begin(self, rows: Rows, chosen: Mapping[str, Any]) -> None:
        index, tradeoff = self._each(chosen, "index"), self._each(chosen, "tradeoff")
        size = len(self.source.labels)
        given = [
            (None if index[row] is None else check_index(index[row], size), None if tradeoff[row] is None else check_tradeoff(tradeoff[row])[0])
            for row in rows
        ]
        dealt = [self.decks[row].deal(*pair) for row, pair in zip(rows, given, strict=True)]
        self.episodes.begin(rows, np.array([pair[0] for pair in dealt]), np.array([pair[1] for pair in dealt]))

    def _rewards(self, task: NDArray[np.float64], spent: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([task, -spent], 1) if self.vector_reward else task - self.episodes.tradeoff * spent

    def _final(self, ended: Rows, last: dict[str, NDArray]) -> Infos:
        """What same-step autoreset says of the episodes it replaces."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row, observation in zip(ended, self.episodes.last_observation(ended), strict=True):
            final_obs[row] = observation
        going = {name: part[ended] for name, part in self.episodes.going_info().items()}
        mask = np.zeros(self.num_envs, np.bool_)
        mask[ended] = True
        return {"final_obs": final_obs, "_final_obs": mask, "final_info": self._batched(going | last, ended), "_final_info": mask.copy()}

    def _batched(self, parts: dict[str, NDArray], rows: Rows, taken: Rows | None = None) -> Infos:
        """Gymnasium's form: each entry zero outside `rows`, with a mask beside it. `parts` has a row for each of `rows`,
        or, where `taken` is given, for every sub-environment."""
        infos: Infos = {}
        mask = np.zeros(self.num_envs, np.bool_)
        mask[rows] = True
        for name, part in parts.items():
            values = part if taken is None else part[taken]
            if len(rows) == self.num_envs:
                infos[name] = values
            else:
                infos[name] = np.zeros((self.num_envs, *part.shape[1:]), part.dtype)
                infos[name][rows] = values
            infos[f"_{name}"] = mask.copy()
        return infos
