"""Episodes as an animation."""

from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from rnr_gym.agents import FitConfig
from rnr_gym.experiments import animation, runs
from tests.experiments.test_runs import ENV, few_digits, snapshot


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    few_digits(monkeypatch)


@pytest.fixture(scope="module")
def cheapest(tmp_path_factory):
    """A router that answers at the glance, or after it where that is cheaper."""
    with pytest.MonkeyPatch.context() as patch:
        few_digits(patch)
        folder = tmp_path_factory.mktemp("run")
        runs.fit("cheapest", FitConfig(ENV), folder)
    return folder


@pytest.fixture
def made(monkeypatch):
    """The arguments of every environment that is made, and the seeds it is reset with."""
    told, make = [], gym.make

    def noting(name, **arguments):
        env = make(name, **arguments)
        reset = env.reset
        monkeypatch.setattr(
            env, "reset", lambda **more: (told.append((name, arguments, more)), reset(**more))[1]
        )
        return env

    monkeypatch.setattr(gym, "make", noting)
    return told


def frames(path):
    with Image.open(path) as picture:
        assert picture.format == "GIF"
        shown = []
        for number in range(picture.n_frames):
            picture.seek(number)
            shown.append(np.asarray(picture.convert("RGB")))
        return shown


def test_every_state_of_every_episode_is_a_frame(tmp_path, cheapest):
    count = animation.record(ENV, tmp_path / "new" / "film.gif", cheapest, 0.1, 2, 0)
    shown = frames(tmp_path / "new" / "film.gif")
    path = runs.load(cheapest).router.path(0.1)
    assert count == len(shown) == 2 * (1 + int((path >= 0).sum()))
    assert shown[0].shape == (270, 720, 3)
    assert all((one != other).any() for one, other in pairwise(shown))


def test_without_a_run_sub_paths_are_drawn_from_the_seed(tmp_path):
    counts = [
        animation.record(ENV, tmp_path / f"{name}.gif", None, 0.1, 2, seed)
        for name, seed in (("one", 5), ("again", 5), ("other", 6))
    ]
    one, again, other = (
        (tmp_path / f"{name}.gif").read_bytes() for name in ("one", "again", "other")
    )
    assert one == again
    assert one != other
    assert counts[0] == counts[1] == len(frames(tmp_path / "one.gif"))


def test_images_are_of_test_and_the_tradeoff_is_the_one_asked_for(tmp_path, made, cheapest):
    animation.record(ENV, tmp_path / "film.gif", cheapest, 0.25, 2, 7)
    assert [(name, more) for name, _, more in made] == [(ENV, {"seed": 7}), (ENV, {"seed": None})]
    assert all(
        (arguments["split"], arguments["tradeoff"], arguments["render_mode"])
        == ("test", 0.25, "rgb_array")
        for _, arguments, _ in made
    )


def test_a_runs_own_arguments_hold(tmp_path, made):
    runs.fit("full", FitConfig(ENV, {"exits": False}), tmp_path / "run")
    assert animation.record(ENV, tmp_path / "film.gif", tmp_path / "run", 0.1, 1, 0) == 5
    assert all(arguments["exits"] is False for _, arguments, _ in made)


def test_a_file_that_exists_is_left_alone(tmp_path):
    (tmp_path / "film.gif").write_text("mine")
    with pytest.raises(FileExistsError, match="`out` must be a new file"):
        animation.record(ENV, tmp_path / "film.gif", None, 0.1, 1, 0)
    assert (tmp_path / "film.gif").read_text() == "mine"


def test_a_router_for_another_environment_is_refused(tmp_path, cheapest):
    before = snapshot(tmp_path)
    with pytest.raises(
        ValueError,
        match=f"`run` must be a router for RNR-Digits-Channels-v0, got .*, one for {ENV}",
    ):
        animation.record("RNR-Digits-Channels-v0", tmp_path / "film.gif", cheapest, 0.1, 1, 0)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("tradeoff", "episodes", "named"),
    [(-1.0, 1, "tradeoff"), (9.0, 1, "tradeoff"), (0.1, 0, "episodes"), (0.1, -2, "episodes")],
)
def test_what_makes_no_sense_is_refused_and_nothing_written(tmp_path, tradeoff, episodes, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        animation.record(ENV, tmp_path / "film.gif", None, tradeoff, episodes, 0)
    assert list(tmp_path.iterdir()) == []
