"""The environment for one image at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Unpack

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rnr_gym.envs.episodes import Dealing, ImageSampler, Episodes
from rnr_gym.envs.rendering import RENDER_MODES, Scene, Window, frame, text
from rnr_gym.routing.observations import CLIP, bounds
from rnr_gym.routing.rewards import check_one_tradeoff
from rnr_gym.routing.sources import SourceArguments, open_images, open_source
from rnr_gym.routing.spec import RoutingSpec

ONE = np.zeros(1, np.int64)


def observation_space(spec: RoutingSpec) -> spaces.Box:
    """The flat float32 box of a routing problem's observations."""
    low, high = bounds(spec.layout, CLIP, spec.ceiling)
    return spaces.Box(low, high, dtype=np.float32)


def reward_space(spec: RoutingSpec, reward: str) -> spaces.Box:
    """The box of vector rewards: (task term, minus the compute of a step)."""
    low, high = (0.0, 1.0) if reward == "accuracy" else (-np.inf, 0.0)
    return spaces.Box(np.array([low, -spec.ceiling]), np.array([high, 0.0]), dtype=np.float64)


def check_index(index: Any, size: int) -> int:
    """`options["index"]` as an int, or a `ValueError`."""
    if isinstance(index, bool) or not isinstance(index, int | np.integer) or not 0 <= index < size:
        raise ValueError(f'`options["index"]` must be a whole number in 0..{size - 1}, got {index!r}')
    return int(index)


def check_arguments(source: Mapping[str, Any]) -> None:
    """Refuse a keyword that no environment takes."""
    unknown = sorted(source.keys() - SourceArguments.__annotations__.keys())
    if unknown:
        known = ("tradeoff", "reward", "vector_reward", "render_mode", *SourceArguments.__annotations__)
        raise TypeError(f"`{unknown[0]}` is no argument of this environment; there are {', '.join(known)}")


def check_options(options: dict[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """The options, none of them unknown."""
    unknown = set(options or {}) - set(known)
    if unknown:
        raise ValueError(f"`options` may hold {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return dict(options or {})


class RoutingEnv(Dealing, gym.Env[NDArray[np.float32], np.int64]):
    """
    ## Description

    One image's way through a routable network is one episode. At each of T layers the router sees a summary of what
    the network knows and picks a sub-path; the next layer's features follow from it. The episode ends with an answer,
    at the last layer or at an exit. It earns 1 for a right answer and pays λ for each unit of compute: the multiply-
    accumulates spent, divided by those of the plain network. (Rao, Lu, Lin, Zhou: *Runtime Network Routing for
    Efficient Image Classification*, TPAMI 2019.)

    ## Action Space

    `Discrete(K)`: the number of a sub-path; numbers grow with cost and K - 1 is the full path's. Where the backbone has
    exits, 0 answers at once with the layer's own head (at layer 0: with the glance). An action that a layer does not
    offer is replaced by the nearest one that it does, the cheaper of two; `info["executed"]` says which.

    ## Observation Space

    A flat float32 `Box`, never holding the label; the slices stand in `env.unwrapped.routing.layout`.

    | part | range | meaning |
    |---|---|---|
    | `summary.pooled` | -5..5 | features at this layer, averaged over pixels, z-scored a channel, padded with 0 (all 0 before the stem has run) |
    | `summary.glance` | -5..5 | the glance's pooled features, z-scored |
    | `summary.glance_probabilities` | 0..1 | the glance's class probabilities |
    | `summary.exit_probabilities` | 0..1 | those of the exit head that ran last (the glance at layer 0) |
    | `summary.confidence` | 0..1 | largest exit probability, its lead over the second, entropy / log(classes) |
    | `layer` | 0 or 1 | one-hot over the T layers |
    | `compute` | 0..ceiling | compute so far; the ceiling, about 1.03, is the full path with glance and all exits |
    | `prev_sub_path` | 0 or 1 | one-hot over the K sub-paths, the one executed last; zero at layer 0 |
    | `tradeoff` | 0..4 | λ |

    On `RNR-CIFAR10-Table-v0` the pooled features are averaged over 8 groups of channels, the two glance slices are empty,
    and every value of the summary is rounded to whole steps of 1/127 of its range. After the last step `summary` and `layer` are zero.

    ## Rewards

    Each step: `-λ * Δcompute`, the first step paying for the glance too, and for the stem unless it answers at once: the
    stem runs only for images that continue past the glance (without a glance, at reset). The last step adds 1 if the
    top class is right (`reward="accuracy"`), or `-α * cross-entropy` (`"cross_entropy"`; α = 1 / the full path's mean
    loss on `route`). So the return is exactly `task - λ * compute`. With `vector_reward=True` a step gives the float64
    pair (task term, -Δcompute), whose sum weighted by (1, λ) is the scalar reward.

    ## Starting State

    An image of the split, drawn without replacement until all have been seen, waiting at layer 0 with the glance (or
    without one the stem) already run; and a trade-off, drawn log-uniformly where a range was given.
    `reset(options={"index": i, "tradeoff": λ})` sets either.

    ## Episode End

    Termination after an exit or the last layer; never truncation.

    ## Information

    `action_mask` (int8 `(K,)`, 1 = offered here), `layer`, `compute`, `macs`, `index`, `tradeoff`, after a step `executed`;
    at the end `is_success`, `label`, `prediction`, `loss` (cross-entropy in nats), `path` (int8 `(T,)`, -1 after an exit).

    ## Arguments

    ```python
    gym.make("RNR-Digits-v0", split="route", tradeoff=0.3, reward="accuracy", vector_reward=False, exits=True,
             backend="live", weights="frozen", data_root=None, download=True, device="cpu", render_mode=None)
    ```

    * `split`: `"train"`, `"route"` (fit routers here) or `"test"` (final figures only).
    * `tradeoff`: λ in 0..4, or (low, high).
    * `reward`, `vector_reward`: see Rewards.
    * `exits`: False neither runs nor charges exits and glance: T steps always, the paper's form.
    * `backend`: `"live"` runs the network; `"table"` looks up paths worked out once; `"shipped"` those that come with the
      package and need no images (`RNR-CIFAR10-Table-v0`); a `RouteTable` of one's own is routed as it is.
    * `weights`: `"frozen"` (shipped), a file that `rnr-gym pretrain` wrote, or None for seeded random ones.
    * `backbone`, `dataset`: names, or a `Backbone` and an `ImageSet` of one's own, or a dict of image sets by split (`RNR-v0`).
    * `data_root`, `download`: where images lie (else `RNR_GYM_DATA`, else the user's cache folder), as torchvision's files or as
      folders `<data_root>/cifar10/{train,test}/<class>/*`, and whether CIFAR may be fetched if they are not there.
    * `device`: where the backbone runs.

    ## Version History

    * v0: initial version.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 2}  # noqa: RUF012

    def __init__(
        self,
        tradeoff: float | tuple[float, float] = 0.3,
        reward: str = "accuracy",
        vector_reward: bool = False,
        render_mode: str | None = None,
        **source: Unpack[SourceArguments],
    ) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(f"`render_mode` must be None or one of {', '.join(RENDER_MODES)}, got {render_mode!r}")
        self.decks = []
        self.tradeoff = tradeoff
        self.vector_reward, self.render_mode = vector_reward, render_mode
        check_arguments(source)
        self.source = open_source(**source)
        self.episodes = Episodes(self.source, reward, 1)
        self.observation_space: spaces.Box = observation_space(self.routing)  # type: ignore[assignment]
        self.action_space: spaces.Discrete = spaces.Discrete(self.routing.num_paths)
        if vector_reward:
            self.reward_space = reward_space(self.routing, reward)
        self.window: Window | None = None
        self._images = partial(open_images, **source)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; `options` may set `"index"` (of the image) and `"tradeoff"`."""
        super().reset(seed=seed)
        chosen = check_options(options, ("index", "tradeoff"))
        index = check_index(chosen["index"], len(self.source.labels)) if "index" in chosen else None
        fixed = check_one_tradeoff(chosen["tradeoff"]) if "tradeoff" in chosen else None
        if seed is not None or not self.decks:
            self.decks = [ImageSampler(len(self.source.labels), self.tradeoff, self.np_random)]
        dealt, tradeoff = self.decks[0].deal(index, fixed)
        self.episodes.begin(ONE, np.array([dealt]), np.array([tradeoff]))
        self._show()
        return self.episodes.observation()[0], self._info()

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Execute one sub-path. `ValueError` outside the action space, `gymnasium.error.ResetNeeded` before a reset or after the end."""
        if not self.action_space.contains(action):
            raise ValueError(f"`action` must be a whole number in 0..{self.action_space.n - 1}, got {action!r}")
        if self.episodes.walk is None or self.episodes.walk.done[0]:
            raise gym.error.ResetNeeded("`step` needs an episode under way; call `reset` first, and again after each termination")
        moved = self.episodes.step(np.array([action], np.int64))
        info = self._info() | {"executed": int(moved.executed[0])}
        ended = bool(moved.ended[0])
        if ended:
            info |= {name: _plain(part[0]) for name, part in self.episodes.ended_info().items()}
        self._show()
        return self.episodes.observation()[0], self._reward(float(moved.task[0]), float(moved.spent[0])), ended, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """bool `(K,)`, as sb3-contrib's MaskablePPO asks for it."""
        if self.episodes.walk is None:
            raise gym.error.ResetNeeded("`action_masks` needs an episode; call `reset` first")
        return self.routing.masks[self.episodes.walk.layer[0]].astype(np.bool_)

    def render(self) -> Any:
        """A string (`ansi`), a uint8 array `(270, 720, 3)` (`rgb_array`), or None (`human` shows by itself)."""
        if self.render_mode is None:
            gym.logger.warn("`render` was called without a `render_mode`; pass one to `gym.make`")
            return None
        if self.episodes.walk is None:
            raise gym.error.ResetNeeded("`render` needs an episode; call `reset` first")
        return {"ansi": text, "rgb_array": frame}[self.render_mode](self.scene()) if self.render_mode != "human" else None

    def scene(self) -> Scene:
        """What there is to show of the episode."""
        return self.episodes.scene(self._images(), 0)

    def close(self) -> None:
        """Close the window, if `human` opened one."""
        if self.window is not None:
            self.window.close()
            self.window = None

    def _show(self) -> None:
        if self.render_mode == "human":
            self.window = self.window or Window()
            self.window.show(self.scene())

    def _reward(self, task: float, spent: float) -> Any:
        return np.array([task, -spent]) if self.vector_reward else task - float(self.episodes.tradeoff[0]) * spent

    def _info(self) -> dict[str, Any]:
        return {name: _plain(part[0]) for name, part in self.episodes.going_info().items()}


def _plain(value: Any) -> Any:
    """NumPy scalars as Python's own, arrays as copies."""
    return value.copy() if isinstance(value, np.ndarray) else value.item()
