"""Episodes as an animation."""

from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from rnr_gym.agents import FitConfig
from rnr_gym.envs import RoutingEnv
from rnr_gym.experiments import animation, runs
from tests.fixtures.digits import ENV, use_few_digits
from tests.fixtures.files import snapshot


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch):
    use_few_digits(monkeypatch)


@pytest.fixture(scope="module")
def cheapest_dir(tmp_path_factory):
    """A run whose router answers at the glance, or after it where that is cheaper."""
    run_dir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        runs.fit("cheapest", FitConfig(ENV), run_dir)
    return run_dir


def record(out, run=None, tradeoff=0.1, episodes=1, seed=0, env_id=ENV):
    return animation.record(env_id, out, run, tradeoff, episodes, seed)


def frames_of(path):
    """The frames of a GIF, uint8 `(H, W, 3)` each."""
    frames = []
    with Image.open(path) as gif:
        assert gif.format == "GIF"
        for number in range(gif.n_frames):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")))
    return frames


def test_record_has_frame_per_state(tmp_path, cheapest_dir):
    out = tmp_path / "new" / "episodes.gif"
    count = record(out, cheapest_dir, episodes=2)
    frames = frames_of(out)
    path = runs.load(cheapest_dir).router.path(0.1)
    # One frame before the first decision, and one after each.
    assert len(frames) == 2 * (1 + (path >= 0).sum())
    assert count == len(frames)
    assert frames[0].shape == (540, 960, 3)
    for frame, following in pairwise(frames):
        assert (frame != following).any()


def test_answer_is_shown_longer(tmp_path, cheapest_dir):
    out = tmp_path / "episodes.gif"
    record(out, cheapest_dir)
    durations = []
    with Image.open(out) as gif:
        for number in range(gif.n_frames):
            gif.seek(number)
            durations.append(gif.info["duration"])
    assert durations[-1] == animation.ANSWER_TIMES * animation.FRAME_MS
    assert set(durations[:-1]) == {animation.FRAME_MS}


def test_record_without_run_follows_seed(tmp_path):
    count = record(tmp_path / "first.gif", episodes=2, seed=5)
    assert count == record(tmp_path / "again.gif", episodes=2, seed=5)
    record(tmp_path / "other.gif", episodes=2, seed=6)

    first = (tmp_path / "first.gif").read_bytes()
    assert (tmp_path / "again.gif").read_bytes() == first
    assert (tmp_path / "other.gif").read_bytes() != first
    assert count == len(frames_of(tmp_path / "first.gif"))


@pytest.fixture
def resets(monkeypatch):
    """Of each reset of an environment: its id, the arguments it was made with, and the seed."""
    resets = []
    make = gym.make

    def recording_make(env_id, **kwargs):
        env = make(env_id, **kwargs)
        reset = env.reset

        def recording_reset(*, seed=None):
            resets.append((env_id, kwargs, seed))
            return reset(seed=seed)

        monkeypatch.setattr(env, "reset", recording_reset)
        return env

    monkeypatch.setattr(gym, "make", recording_make)
    return resets


def test_record_is_seeded_once(tmp_path, resets, cheapest_dir):
    record(tmp_path / "episodes.gif", cheapest_dir, episodes=2, seed=7)
    assert [(env_id, seed) for env_id, _, seed in resets] == [(ENV, 7), (ENV, None)]


def test_record_plays_test_at_tradeoff(tmp_path, resets, cheapest_dir):
    record(tmp_path / "episodes.gif", cheapest_dir, tradeoff=0.25, episodes=2)
    assert resets
    for _, kwargs, _ in resets:
        assert kwargs["split"] == "test"
        assert kwargs["tradeoff"] == 0.25
        assert kwargs["render_mode"] == "rgb_array"


def test_record_uses_arguments_of_run(tmp_path, resets):
    run_dir = tmp_path / "run"
    runs.fit("full", FitConfig(ENV, {"exits": False}), run_dir)
    # Four decisions, since there are no exits.
    assert record(tmp_path / "episodes.gif", run_dir) == 5
    assert resets
    assert all(kwargs["exits"] is False for _, kwargs, _ in resets)


def test_record_rejects_existing_file(tmp_path):
    out = tmp_path / "episodes.gif"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="`out` must be a new file"):
        record(out)
    assert out.read_text() == "mine"


def test_record_rejects_other_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"`out` must end in .gif or .mp4, got .*episodes.png"):
        record(tmp_path / "episodes.png")
    assert list(tmp_path.iterdir()) == []


def test_record_writes_mp4(tmp_path, cheapest_dir):
    moviepy = pytest.importorskip("moviepy", reason="MP4 needs the extra `video`")
    out = tmp_path / "episodes.mp4"
    count = record(out, cheapest_dir, episodes=2)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]
    with moviepy.VideoFileClip(str(out)) as clip:
        assert clip.size == [960, 540]
        # Both answers are shown twice as long.
        seconds = (count + 2) * animation.FRAME_MS / 1000
        assert clip.duration == pytest.approx(seconds, abs=0.1)


def test_record_names_the_extra_for_mp4(tmp_path, monkeypatch):
    monkeypatch.setattr(animation, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"must end in .gif without .*rnr-gym\[video\]"):
        record(tmp_path / "episodes.mp4")
    assert list(tmp_path.iterdir()) == []


def test_record_shows_what_the_router_thinks(tmp_path, monkeypatch):
    watched = []
    monkeypatch.setattr(RoutingEnv, "watch", lambda self, router: watched.append(router))
    run_dir = tmp_path / "run"
    runs.fit("ppo", FitConfig(ENV, steps=2048, progress=False), run_dir)
    record(tmp_path / "episodes.gif", run_dir)
    assert [router.name for router in watched] == ["ppo"]


def test_record_rejects_router_of_other_env(tmp_path, cheapest_dir):
    env_id = "RNR-Digits-Channels-v0"
    message = f"`run` must be a router for {env_id}, got .*, one for {ENV}"
    with pytest.raises(ValueError, match=message):
        record(tmp_path / "episodes.gif", cheapest_dir, env_id=env_id)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("tradeoff", -1.0), ("tradeoff", 9.0), ("episodes", 0), ("episodes", -2)],
)
def test_record_rejects_value_out_of_range(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        record(tmp_path / "episodes.gif", **{name: value})
    assert list(tmp_path.iterdir()) == []
