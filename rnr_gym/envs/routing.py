"""The environment for one image at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Unpack

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rnr_gym import checks
from rnr_gym.envs.episodes import Episodes, StartOptions
from rnr_gym.envs.rendering import RENDER_MODES, frame
from rnr_gym.envs.scene import Scene, text
from rnr_gym.envs.window import Window
from rnr_gym.routing.observations import CLIP, bounds
from rnr_gym.routing.protocols import Router
from rnr_gym.routing.rewards import check_one_tradeoff, check_tradeoff
from rnr_gym.routing.route_table import RouteTable
from rnr_gym.routing.sources import SourceKwargs, open_images, open_source
from rnr_gym.routing.spec import RoutingSpec

REWARD_DIM = 2
"""Numbers in a vector reward."""
FIRST = np.zeros(1, np.int64)
"""The position of the only episode."""


def observation_space(spec: RoutingSpec) -> spaces.Box:
    """The flat float32 box of a routing problem's observations."""
    low, high = bounds(spec.layout, CLIP, spec.ceiling)
    return spaces.Box(low, high, dtype=np.float32)


def reward_space(spec: RoutingSpec, reward: str) -> spaces.Box:
    """The box of vector rewards: (task term, minus the compute of a step)."""
    low = np.array([0.0, -spec.ceiling])
    high = np.array([1.0, 0.0])
    if reward != "accuracy":
        # Minus a loss, which has no upper bound.
        low[0] = -np.inf
        high[0] = 0.0
    return spaces.Box(low, high, dtype=np.float64)


def check_index(index: Any, size: int) -> int:
    """`options["index"]` as an int; raises `ValueError` if it is not one in 0..size - 1."""
    return checks.integer('options["index"]', index, 0, size - 1)


def check_kwargs(kwargs: Mapping[str, Any]) -> None:
    """Raise `TypeError` for a keyword that is not an argument of the environments."""
    source_kwargs = SourceKwargs.__annotations__
    unknown = sorted(kwargs.keys() - source_kwargs.keys())
    if unknown:
        known = ["tradeoff", "reward", "vector_reward", "render_mode", *source_kwargs]
        # Python's own words, by which TorchRL tells that there is no `frameskip`.
        raise TypeError(
            f"the environment got an unexpected keyword argument '{unknown[0]}'; it takes "
            + ", ".join(known)
        )


def check_options(options: dict[str, Any] | None, known: tuple[str, ...]) -> dict[str, Any]:
    """The options as a new dict; raises `ValueError` if one is not `known`."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f"`options` must be a dict or None, got {options!r}")
    options = dict(options or {})
    unknown = sorted(map(str, options.keys() - set(known)))
    if unknown:
        raise ValueError(f"`options` may hold {', '.join(known)}, got {', '.join(unknown)}")
    return options


class RoutingEnv(gym.Env[NDArray[np.float32], np.int64]):
    """
    ## Description

    One image's way through a routable network is one episode. `env.unwrapped.routing_spec`
    describes its decisions, their costs and where the parts of an observation are.

    At each of T layers the router sees a summary of what the network knows and picks a sub-path;
    the next layer's features follow from it. The episode ends with an answer, at the last layer or
    at an exit. It earns 1 for a right answer and pays λ for each unit of compute: the
    multiply-accumulates spent, divided by those of the plain network. (Rao, Lu, Lin, Zhou: *Runtime
    Network Routing for Efficient Image Classification*, TPAMI 2019.)

    ## Action Space

    `Discrete(K)`: the number of a sub-path; numbers grow with cost and K - 1 is the full path's.
    Where the backbone has exits, 0 answers at once with the layer's own head (at layer 0: with the
    glance). An action that a layer does not offer is replaced by the nearest one that it does, the
    cheaper of two; `info["executed"]` says which.

    ## Observation Space

    A flat float32 `Box`, which never holds the label. `env.unwrapped.routing_spec.layout` has the
    slices of its parts:

    | part | range | meaning |
    |---|---|---|
    | `summary.pooled` | -5..5 | this layer's features, averaged over pixels, z-scored per channel |
    | `summary.glance` | -5..5 | the glance's pooled features, z-scored |
    | `summary.glance_probabilities` | 0..1 | the glance's class probabilities |
    | `summary.exit_probabilities` | 0..1 | those of the exit head that ran last |
    | `summary.confidence` | 0..1 | see below |
    | `layer` | 0 or 1 | one-hot over the T layers |
    | `compute` | 0..ceiling | compute so far |
    | `prev_sub_path` | 0 or 1 | one-hot over the K sub-paths, the one executed last |
    | `tradeoff` | 0..4 | λ |

    * `summary.pooled` is padded with 0, and all 0 before the stem has run.
    * At layer 0 the exit head that ran last is the glance, and `prev_sub_path` is zero.
    * `summary.confidence` is the largest exit probability, its lead over the second, and the
      entropy / log(classes).
    * The ceiling of `compute`, at most 1.1 here for MACs, is the full path with glance and all
      exits.
    * After the last step `summary` and `layer` are zero.
    * On `RNR-CIFAR10-Table-v0` the pooled features are averaged over 8 groups of channels, the two
      glance slices are empty, and every value of the summary is rounded to whole steps of 1/127 of
      its range.

    ## Rewards

    Each step: `-λ * Δcompute`, where the first step pays for the glance too, and for the stem
    unless it answers at once: the stem runs only for images that continue past the glance (without
    a glance, at reset). The last step adds 1 if the top class is right (`reward="accuracy"`), or
    `-α * cross-entropy` (`"cross_entropy"`; α = 1 / the full path's mean loss on `route`). So the
    return is exactly `task - λ * compute`. Compute is a share of the plain network's MACs, or with
    `cost="time"` of its time. With `vector_reward=True` a step gives the float64 pair
    (task term, -Δcompute), whose sum weighted by (1, λ) is the scalar reward; `reward_space` and
    `reward_dim` describe it.

    ## Starting State

    An image of the split, drawn without replacement until all have been seen, waiting at layer 0
    with the glance (or without one the stem) already run; and a trade-off, drawn log-uniformly
    where a range was given. `reset(options={"index": i, "tradeoff": λ})` sets either.

    ## Episode End

    Termination after an exit or the last layer; never truncation.

    ## Information

    The same keys at every step, arrays and NumPy scalars:

    * `action_mask` (int8 `(K,)`, 1 = offered here; all 1 at the end), `layer`, `compute`, `macs`,
      `index` and `tradeoff`;
    * `executed`, the sub-path taken in this step, -1 at reset; `path` (int8 `(T,)`), those taken so
      far, -1 elsewhere;
    * the outcome, known at the end: `is_success` (False before), `label`, `prediction` and `loss`
      (cross-entropy in nats), -1 before;
    * with `cost="time"` also `nanoseconds`, the time charged so far; `macs` stays what it is.

    ## Arguments

    ```python
    gym.make(
        "RNR-Digits-v0", split="route", tradeoff=0.3, reward="accuracy", vector_reward=False,
        exits=True, backend="live", weights="pretrained", data_root=None, download=True,
        device="cpu", dtype="float32", cost="macs", render_mode=None,
    )
    ```

    * `split`: `"train"`, `"route"` (fit routers here) or `"test"` (final figures only).
    * `tradeoff`: λ in 0..4, or (low, high). `env.unwrapped.tradeoff` reads it as a pair, and sets
      it from the next episode on.
    * `reward`, `vector_reward`: see Rewards.
    * `exits`: False neither runs nor charges exits and glance: T steps always, the paper's form.
    * `backend`: `"live"` runs the network. `"table"` looks up precomputed paths: the bundled table
      where there is one, which needs no images (`RNR-CIFAR10-Table-v0`). A `RouteTable` of your own
      is used as it is.
    * `weights`: `"pretrained"`, or `"finetuned"` for those that were trained under a router
      afterwards (both bundled with the package); a file that `rnr-gym pretrain` wrote, or None for
      seeded random ones.
    * `backbone`, `dataset`: names, or a `Backbone` and an `ImageSet` of your own, or a dict of
      image sets by split (`RNR-v0`).
    * `data_root`, `download`: the directory of the images (else `RNR_GYM_DATA`, else the user's
      cache directory), which holds torchvision's files or directories
      `<data_root>/cifar10/{train,test}/<class>/*`; and whether CIFAR may be downloaded if it is not
      there.
    * `device`, `dtype`: where the backbone runs, and in what it computes features: `"float32"`,
      `"bfloat16"`, or `"auto"` for the faster one on this machine, which is measured when the
      network is loaded.
    * `cost`: what compute is a share of, and rewards charge: `"macs"`, or `"time"` for the
      nanoseconds that every part of the backbone took on this machine when
      `rnr-gym profile BACKBONE` measured it. A file that the command wrote with `--out`, or the
      result of `rnr_gym.profile`, charges the same times on every machine.
    * `render_mode`: `"ansi"`, `"rgb_array"` or `"human"`. `env.unwrapped.watch(router)` adds to the
      pictures what a router thinks of each sub-path.

    ## Version History

    * v0: initial version.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 2}  # noqa: RUF012

    def __init__(
        self,
        *,
        tradeoff: float | tuple[float, float] = 0.3,
        reward: str = "accuracy",
        vector_reward: bool = False,
        render_mode: str | None = None,
        **source_kwargs: Unpack[SourceKwargs],
    ) -> None:
        if render_mode is not None:
            checks.choice("render_mode", render_mode, RENDER_MODES)
        # Before the source is opened, which may download images.
        tradeoff_range = check_tradeoff(tradeoff)
        check_kwargs(source_kwargs)

        self.source = open_source(**source_kwargs)
        self.routing_spec = self.source.spec
        self.episodes = Episodes(self.source, 1, tradeoff_range, reward)
        self.vector_reward = checks.flag("vector_reward", vector_reward)
        self.render_mode = render_mode
        self.window: Window | None = None
        self.watched: Router | None = None
        self._load_images = partial(open_images, **source_kwargs)

        spec = self.routing_spec
        self.observation_space: spaces.Box = observation_space(spec)  # type: ignore[assignment]
        self.action_space: spaces.Discrete = spaces.Discrete(spec.num_paths)
        if vector_reward:
            self.reward_space = reward_space(spec, reward)
            self.reward_dim = REWARD_DIM

    @property
    def tradeoff(self) -> tuple[float, float]:
        """λ as (low, high), equal if it is one number; a change applies to the next episode."""
        return self.episodes.tradeoff_range

    @tradeoff.setter
    def tradeoff(self, value: float | tuple[float, float]) -> None:
        self.episodes.tradeoff_range = value

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of the generator that draws images and trade-offs; None keeps the last one.
            options: may set `"index"` (of the image) and `"tradeoff"`.
        """
        if seed is not None:
            seed = checks.integer("seed", seed, 0)
        super().reset(seed=seed)
        options = check_options(options, ("index", "tradeoff"))
        start = StartOptions()
        if "index" in options:
            index = check_index(options["index"], len(self.source.labels))
            start = start._replace(image_idx=index)
        if "tradeoff" in options:
            start = start._replace(tradeoff=check_one_tradeoff(options["tradeoff"]))

        # Draws come from Gymnasium's own generator, so `env.np_random` is what is seeded.
        if seed is not None or not self.episodes.samplers:
            self.episodes.seed(0, self.np_random)
        self.episodes.begin(FIRST, [start])
        self._show()
        return self.episodes.observation()[0], self._info()

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Execute one sub-path.

        Raises:
            ValueError: the action is outside the action space.
            gymnasium.error.ResetNeeded: before a reset, or after the end of an episode.
        """
        if not self.action_space.contains(action):
            raise ValueError(
                f"`action` must be a whole number in 0..{self.action_space.n - 1}, got {action!r}"
            )
        if self.episodes.state.done[0]:
            raise gym.error.ResetNeeded("the episode has terminated; call `reset` before `step`")

        # An action that is not offered at this layer is no error; see Action Space.
        transition = self.episodes.step(np.array([action], np.int64))
        self._show()

        reward: Any = float(transition.reward[0])
        if self.vector_reward:
            reward = transition.vector_reward[0]
        observation = self.episodes.observation()[0]
        return observation, reward, bool(transition.terminated[0]), False, self._info()

    def action_masks(self) -> NDArray[np.bool_]:
        """bool `(K,)`: the valid actions, in the form that sb3-contrib's MaskablePPO asks for."""
        return self.episodes.action_masks()[0]

    def watch(self, router: Router | None) -> None:
        """Draw in every picture what a router thinks of the sub-paths; None for no router.

        The picture shows the probabilities of a policy, or the values of a Q-function, at each
        layer that the image has reached. Who decides, in `step`, remains whoever calls it. Models
        of Stable-Baselines3 and the routers of this package can be watched; rules that have no such
        numbers are drawn without any.

        Raises:
            ValueError: `router` has no `predict`.
        """
        if router is not None and not callable(getattr(router, "predict", None)):
            raise ValueError(f"`router` must have a method `predict`, got {router!r}")
        self.watched = router

    def render(self) -> Any:
        """A string (`ansi`) or a uint8 array `(540, 960, 3)` (`rgb_array`).

        None in the mode `human`, where `reset` and `step` show the episode.
        """
        if self.render_mode is None:
            gym.logger.warn("`render` was called without a `render_mode`; pass one to `gym.make`")
            return None

        scene = self.scene()
        if self.render_mode == "ansi":
            return text(scene)
        if self.render_mode == "rgb_array":
            return frame(scene)
        return None

    def pareto_front(self, gamma: float = 1.0) -> list[NDArray[np.float64]]:
        """The best mean vector returns of any choice of one path per image, `(2,)` each.

        They bound those of every policy, since such a choice may know the labels. (The name and the
        form are MO-Gymnasium's.)

        Args:
            gamma: the discount.

        Raises:
            ValueError: the environment has no route table, or rewards are not accuracies.
        """
        if not isinstance(self.source, RouteTable):
            raise ValueError('`backend` must be "table" for the exact front, got "live"')
        reward = self.episodes.reward_kind
        if reward != "accuracy":
            raise ValueError(f'`reward` must be "accuracy" for the exact front, got {reward!r}')
        compute, accuracy = self.source.front(gamma)
        return list(np.stack([accuracy, -compute], 1))

    def scene(self) -> Scene:
        """Everything that is drawn of the episode."""
        return self.episodes.scene(self._load_images, 0, self.watched)

    def close(self) -> None:
        """Close the window, if `human` opened one."""
        if self.window is not None:
            self.window.close()
            self.window = None

    def _show(self) -> None:
        if self.render_mode != "human":
            return
        if self.window is None:
            self.window = Window()
        self.window.show(self.scene())

    def _info(self) -> dict[str, Any]:
        return {name: array[0] for name, array in self.episodes.info(FIRST).items()}
