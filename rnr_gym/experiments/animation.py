"""Episodes as an animation."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rnr_gym import storage
from rnr_gym.agents.uniform import UniformRouter
from rnr_gym.experiments import runs
from rnr_gym.registration import registered_kwargs
from rnr_gym.routing.rewards import check_tradeoff


def record(env: str, out: Path, run: Path | None, tradeoff: float, episodes: int, seed: int) -> int:
    """Write episodes of `test` as a GIF, routed by a fitted router or at random; the number of frames."""
    if out.exists():
        raise FileExistsError(f"`out` must be a new file, got {str(out)!r}, which exists; choose another")
    check_tradeoff(tradeoff)
    registered_kwargs(env)
    if episodes < 1:
        raise ValueError(f"`episodes` must be at least 1, got {episodes}")
    loaded = runs.load(run) if run else None
    if loaded and loaded.fit_config.env != env:
        raise ValueError(f"`run` must be a router for {env}, got {str(run)!r}, one for {loaded.fit_config.env}")
    if out.suffix.lower() != ".gif":
        raise ValueError(f"`out` must end in .gif, got {str(out)!r}")
    arguments = dict(loaded.fit_config.arguments) if loaded else {}
    game = gym.make(env, split="test", tradeoff=tradeoff, render_mode="rgb_array", **arguments)
    router = loaded.router if loaded else UniformRouter(game.unwrapped.routing, seed)  # type: ignore[attr-defined]
    frames: list[NDArray[np.uint8]] = []
    for episode in range(episodes):
        seen, _ = game.reset(seed=seed if episode == 0 else None)
        frames.append(game.render())  # type: ignore[arg-type]
        ended = False
        while not ended:
            action, _ = router.predict(seen[None])
            seen, _, ended, _, _ = game.step(action[0])
            frames.append(game.render())  # type: ignore[arg-type]
    pictures = [Image.fromarray(frame) for frame in frames]
    with storage.replacing(out) as partial:
        pictures[0].save(partial, format="GIF", save_all=True, append_images=pictures[1:], duration=900, loop=0)
    return len(frames)
