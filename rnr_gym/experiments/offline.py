"""Episodes of behaviour routers as Minari data sets, to learn from without the environment."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import rnr_gym
from rnr_gym import agents
from rnr_gym.agents import AGENTS, FitConfig
from rnr_gym.envs.episodes import Episodes, StartOptions
from rnr_gym.experiments.results import ORACLE
from rnr_gym.routing import rollout
from rnr_gym.routing.route_table import RouteTable

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer

REPOSITORY = "https://github.com/rnr-gym/rnr-gym"
RANDOM = "random"
MIXED = "mixed"
BEHAVIOURS = (RANDOM, "confidence", "ppo", ORACLE, MIXED)
"""What is exported unless something else is named."""
DESCRIPTION = (
    "Every image of the split `route` of {env} once, at a trade-off drawn log-uniformly from "
    "{low:g} to {high:g}, routed by {behaviour}. Seed {seed}."
)
EXPLAINED = {
    ORACLE: "the oracle, which knows the label and takes the best path of each image",
    MIXED: "one of random sub-paths, the confidence rule, PPO and the oracle, drawn for each image",
}


class Behaviour(NamedTuple):
    """What a behaviour did with N images.

    Attributes:
        paths: int8 `(N, T)`, executed sub-paths, -1 after an exit.
        returns: float64 `(N,)`.
    """

    paths: NDArray[np.int8]
    returns: NDArray[np.float64]


def export(fit_config: FitConfig, behaviours: Sequence[str]) -> dict[str, float]:
    """Write one Minari data set for each behaviour, to where Minari keeps its data sets.

    Reference scores are the mean returns of random sub-paths (0) and of the oracle (1) on the same
    images and trade-offs. Data sets are named `rnr/<id>/<behaviour>-v0`, as in
    `rnr/digits/ppo-v0`.

    Args:
        fit_config: the environment, and how those behaviours are fitted that are agents.
        behaviours: agents, `"oracle"`, or `"mixed"` for an even mixture of random sub-paths, the
            confidence rule, PPO and the oracle.

    Returns:
        The normalised score of each data set, by its id.

    Raises:
        ValueError: Minari is not installed, a behaviour is unknown or named twice, or the
            environment has no route table.
        FileExistsError: a data set is there already.
    """
    if find_spec("minari") is None:
        raise ValueError("`to` must be installed, got minari; pip install 'rnr-gym[minari]'")
    ids = _check_behaviours(fit_config, behaviours)
    table = fit_config.table("route")
    if table is None:
        raise ValueError(
            f"`env` must have a route table, since the oracle is exact, got {fit_config.env}"
        )

    rng = np.random.default_rng(fit_config.seed)
    low, high = np.log(fit_config.tradeoffs)
    tradeoffs = np.exp(rng.uniform(low, high, len(table.labels)))
    parts = _parts(behaviours)
    done = {name: _behaviour(name, fit_config, table, tradeoffs) for name in parts}
    if MIXED in behaviours:
        done[MIXED] = _mixed([done[name] for name in BEHAVIOURS if name != MIXED], rng)

    floor = float(done[RANDOM].returns.mean())
    ceiling = float(done[ORACLE].returns.mean())
    scores = {}
    for name, dataset_id in ids.items():
        episodes = _episodes(table, done[name].paths, tradeoffs, fit_config.seed)
        _write(dataset_id, episodes, name, fit_config, table.spec.num_layers, floor, ceiling)
        scores[dataset_id] = (float(done[name].returns.mean()) - floor) / (ceiling - floor)
    return scores


def _check_behaviours(fit_config: FitConfig, behaviours: Sequence[str]) -> dict[str, str]:
    """The data sets' ids, by behaviour."""
    import minari

    known = [*AGENTS, ORACLE, MIXED]
    unknown = [name for name in behaviours if name not in known]
    if unknown or not behaviours or len(set(behaviours)) < len(behaviours):
        raise ValueError(
            f"`behaviours` must be different ones of {', '.join(known)}, got "
            f"{', '.join(behaviours) or 'none'}"
        )
    for name in behaviours:
        if name in AGENTS:
            agents.check(name, fit_config)

    short = fit_config.env.removeprefix("RNR-").removesuffix("-v0").lower()
    ids = {name: f"rnr/{short}/{name}-v0" for name in behaviours}
    there = sorted(set(ids.values()) & minari.list_local_datasets().keys())
    if there:
        raise FileExistsError(
            f"`behaviours` must be new data sets, got {', '.join(there)}, which Minari has; delete "
            "them with `minari delete`"
        )
    return ids


def _parts(behaviours: Sequence[str]) -> list[str]:
    """Everything but mixtures that has to be played: what is asked for, and the references."""
    needed = {RANDOM, ORACLE, *behaviours} - {MIXED}
    if MIXED in behaviours:
        needed |= set(BEHAVIOURS) - {MIXED}
    return sorted(needed)


def _behaviour(
    name: str,
    fit_config: FitConfig,
    table: RouteTable,
    tradeoffs: NDArray[np.float64],
) -> Behaviour:
    if name == ORACLE:
        paths = table.oracle(tradeoffs)
    else:
        router = agents.agent(name).fit(fit_config)
        state = table.start(np.arange(len(table.labels)))
        paths = rollout.route(state, table.spec, router, tradeoffs).path
    returns = table.returns(tradeoffs)  # (E, N)
    return Behaviour(paths, returns[table.path_index(paths), np.arange(len(paths))])


def _mixed(parts: Sequence[Behaviour], rng: np.random.Generator) -> Behaviour:
    """For each image one of several behaviours, drawn."""
    image_idx = np.arange(len(parts[0].returns))
    which = rng.integers(0, len(parts), len(image_idx))
    return Behaviour(
        paths=np.stack([part.paths for part in parts])[which, image_idx],
        returns=np.stack([part.returns for part in parts])[which, image_idx],
    )


def _episodes(
    table: RouteTable,
    paths: NDArray[np.int8],
    tradeoffs: NDArray[np.float64],
    seed: int,
) -> list[EpisodeBuffer]:
    """The episodes of all images along their paths, by the rules of the environment."""
    from minari.data_collector import EpisodeBuffer

    num_images = len(paths)
    options = [StartOptions(index, tradeoffs[index]) for index in range(num_images)]
    episodes = Episodes(table, num_images, (tradeoffs.min(), tradeoffs.max()), "accuracy")
    # Image and trade-off are given, so nothing is drawn.
    rng = np.random.default_rng(seed)
    for position in range(num_images):
        episodes.seed(position, rng)
    episodes.begin(np.arange(num_images), options)

    observations = [episodes.observation()]
    rewards = []
    for sub_paths in paths.T:
        # Entries of answered images, -1, are not executed.
        transition = episodes.step(np.maximum(sub_paths, 0).astype(np.int64))
        observations.append(episodes.observation())
        rewards.append(transition.reward)

    obs = np.stack(observations, 1)  # (N, T + 1, D)
    reward = np.stack(rewards, 1)  # (N, T)
    lengths = (paths >= 0).sum(1)
    buffers = []
    for index, length in enumerate(lengths.tolist()):
        buffer = EpisodeBuffer(
            id=index,
            seed=seed,
            options={"index": index, "tradeoff": float(tradeoffs[index])},
            observations=list(obs[index, : length + 1]),
            actions=list(paths[index, :length].astype(np.int64)),
            rewards=list(reward[index, :length]),
            terminations=[False] * (length - 1) + [True],
            truncations=[False] * length,
            infos={},
        )
        buffers.append(buffer)
    return buffers


def _write(
    dataset_id: str,
    episodes: list[EpisodeBuffer],
    behaviour: str,
    fit_config: FitConfig,
    num_layers: int,
    floor: float,
    ceiling: float,
) -> None:
    import minari

    # `rnr_gym:` makes Gymnasium import the package, where the data set is used.
    env_id = f"rnr_gym:{fit_config.env}"
    kwargs: dict[str, Any] = {**fit_config.kwargs, "tradeoff": fit_config.tradeoffs}
    # A limit that no episode reaches: d3rlpy opens only data sets of environments that have one.
    kwargs["max_episode_steps"] = num_layers + 1
    low, high = fit_config.tradeoffs
    with warnings.catch_warnings():
        # Whoever exports is the author, and need not leave a name.
        warnings.filterwarnings("ignore", message="`author")
        minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
            env=gym.make(env_id, split="route", **kwargs),
            eval_env=gym.make(env_id, split="test", **kwargs),
            algorithm_name=behaviour,
            code_permalink=f"{REPOSITORY}/tree/v{rnr_gym.__version__}",
            description=DESCRIPTION.format(
                env=fit_config.env,
                low=low,
                high=high,
                behaviour=EXPLAINED.get(behaviour, f"the agent {behaviour}"),
                seed=fit_config.seed,
            ),
            ref_min_score=floor,
            ref_max_score=ceiling,
            data_format="hdf5",
            requirements=["rnr-gym"],
        )
