"""Episodes as an animation."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
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
ANSWER_TIMES = 2
"""How many times as long the answer is shown."""
SUFFIXES = (".gif", ".mp4")


def record(
    env_id: str,
    out: Path,
    run: Path | None,
    tradeoff: float,
    episodes: int,
    seed: int,
) -> int:
    """Write episodes of `test` as a GIF or, with the extra `video`, as an MP4.

    Where the router has probabilities or values of the sub-paths, the pictures show them.

    Args:
        env_id: the environment.
        out: the file to write; its suffix says the format.
        run: folder of a fitted router; None for random sub-paths.
        tradeoff: λ.
        episodes: how many episodes.
        seed: of the images, and of the random sub-paths.

    Returns:
        The number of frames.

    Raises:
        FileExistsError: `out` exists.
        ValueError: an argument is out of range, the router is for another environment, or MP4 is
            asked for without the extra `video`.
    """
    _check_arguments(env_id, out, tradeoff, episodes, seed)
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
    # Not `route`, whose images the router was fitted to.
    env = gym.make(env_id, split="test", tradeoff=tradeoff, render_mode="rgb_array", **kwargs)
    if router is None:
        router = UniformRouter(env.unwrapped.routing_spec, seed)  # type: ignore[attr-defined]
    else:
        env.unwrapped.watch(router)  # type: ignore[attr-defined]

    frames = []
    times: list[int] = []
    for episode in range(episodes):
        # Seeded once: the images of later episodes follow from the first seed.
        obs, _ = env.reset(seed=seed if episode == 0 else None)
        played = _play(env, router, obs)
        frames += played
        times += [1] * (len(played) - 1) + [ANSWER_TIMES]
    with storage.replacing(out) as partial:
        if out.suffix.lower() == ".gif":
            _write_gif(frames, times, partial)
        else:
            _write_mp4(frames, times, partial)
    return len(frames)


def _check_arguments(env_id: str, out: Path, tradeoff: float, episodes: int, seed: int) -> None:
    if out.exists():
        raise FileExistsError(
            f"`out` must be a new file, got {str(out)!r}, which exists; choose another"
        )
    check_tradeoff(tradeoff)
    registered_kwargs(env_id)
    checks.integer("episodes", episodes, 1)
    checks.integer("seed", seed, 0)
    suffix = out.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"`out` must end in {' or '.join(SUFFIXES)}, got {str(out)!r}")
    if suffix == ".mp4" and find_spec("moviepy") is None:
        raise ValueError(
            "`out` must end in .gif without the extra `video` (pip install 'rnr-gym[video]'), got "
            f"{str(out)!r}"
        )


def _play(env: gym.Env, router: Router, obs: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
    """The frames of an episode that has been reset, one per state."""
    # The state after reset is a frame, too, before any decision.
    frames = [env.render()]
    state = None
    episode_start = np.ones(1, np.bool_)
    terminated = False
    while not terminated:
        # (1, D) -> (1,); a router may remember what it has seen of the image.
        action, state = router.predict(obs[None], state, episode_start, deterministic=True)
        obs, _, terminated, _, _ = env.step(action[0])
        episode_start = np.zeros(1, np.bool_)
        frames.append(env.render())
    return frames  # type: ignore[return-value]


def _write_gif(frames: Sequence[NDArray[np.uint8]], times: Sequence[int], path: Path) -> None:
    """Each frame is shown for its number of times `FRAME_MS`."""
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[FRAME_MS * number for number in times],
        loop=0,
    )


def _write_mp4(frames: Sequence[NDArray[np.uint8]], times: Sequence[int], path: Path) -> None:
    """Each frame is shown for its number of times `FRAME_MS`."""
    # Slow to import, and an extra.
    from moviepy import ImageSequenceClip

    shown = [frame for frame, number in zip(frames, times, strict=True) for _ in range(number)]
    clip = ImageSequenceClip(shown, fps=1000 / FRAME_MS)
    clip.write_videofile(
        str(path),
        codec="libx264",
        audio=False,
        # A temporary name, whose suffix tells no format.
        ffmpeg_params=["-f", "mp4"],
        logger=None,
    )
