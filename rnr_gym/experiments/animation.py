"""Episodes as an animation."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnr_gym import checks, storage
from rnr_gym.agents.uniform import UniformRouter
from rnr_gym.experiments import runs
from rnr_gym.registration import registered_kwargs
from rnr_gym.routing.protocols import Router
from rnr_gym.routing.rewards import check_tradeoff

FRAME_MS = 900
"""How long a frame is shown, in milliseconds."""


def record(
    env_id: str,
    out: Path,
    run: Path | None,
    tradeoff: float,
    episodes: int,
    seed: int,
) -> int:
    """Write episodes of `test` as a GIF.

    Args:
        env_id: the environment.
        out: the file to write.
        run: folder of a fitted router; None for random sub-paths.
        tradeoff: λ.
        episodes: how many episodes.
        seed: of the images, and of the random sub-paths.

    Returns:
        The number of frames.

    Raises:
        FileExistsError: `out` exists.
        ValueError: an argument is out of range, or the router is for another environment.
    """
    _check_arguments(env_id, out, tradeoff, episodes)
    checks.integer("seed", seed, 0)
    router: Router | None = None
    kwargs = {}
    if run is not None:
        loaded = runs.load(run)
        if loaded.fit_config.env != env_id:
            raise ValueError(
                f"`run` must be a router for {env_id}, got {str(run)!r}, one for "
                f"{loaded.fit_config.env}"
            )
        router = loaded.router
        kwargs = dict(loaded.fit_config.kwargs)
    if out.suffix.lower() != ".gif":
        raise ValueError(f"`out` must end in .gif, got {str(out)!r}")

    # Not `route`, whose images the router was fitted to.
    env = gym.make(env_id, split="test", tradeoff=tradeoff, render_mode="rgb_array", **kwargs)
    if router is None:
        router = UniformRouter(env.unwrapped.routing_spec, seed)  # type: ignore[attr-defined]

    frames = []
    for episode in range(episodes):
        # Seeded once: the images of later episodes follow from the first seed.
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        frames += _play(env, router, obs)
    images = [Image.fromarray(frame) for frame in frames]
    with storage.replacing(out) as partial:
        images[0].save(
            partial,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=FRAME_MS,
            loop=0,
        )
    return len(frames)


def _check_arguments(env_id: str, out: Path, tradeoff: float, episodes: int) -> None:
    if out.exists():
        raise FileExistsError(
            f"`out` must be a new file, got {str(out)!r}, which exists; choose another"
        )
    check_tradeoff(tradeoff)
    registered_kwargs(env_id)
    checks.integer("episodes", episodes, 1)


def _play(env: gym.Env, router: Router, obs: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
    """The frames of an episode that has been reset, one per state."""
    # The state after reset is a frame, too, before any decision.
    frames = [env.render()]
    terminated = False
    while not terminated:
        action, _ = router.predict(obs[None])  # (1, D) -> (1,)
        obs, _, terminated, _, _ = env.step(action[0])
        frames.append(env.render())
    return frames  # type: ignore[return-value]
