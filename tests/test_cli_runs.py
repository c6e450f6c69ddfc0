"""The command line: training backbones and routers, evaluating and showing them."""

import gymnasium as gym
import pytest
import torch
from PIL import Image

from rnr_gym import data
from rnr_gym.backbones import zoo
from rnr_gym.backbones.base import Backbone
from rnr_gym.classifier import ROUTER_FILE
from rnr_gym.experiments import runs
from rnr_gym.experiments.evaluation import EVAL_TRADEOFFS
from tests.fixtures import small
from tests.fixtures.commands import fails, succeeds, train_command
from tests.fixtures.digits import ENV, use_few_digits


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch):
    use_few_digits(monkeypatch)
    # Output is wrapped at this width.
    monkeypatch.setenv("COLUMNS", "80")


def percent_rows(output):
    """The cells of the lines that have a percentage."""
    return [line.split() for line in output.splitlines() if "%" in line]


@pytest.fixture(scope="module", params=["static", "confidence", "ppo"])
def agent(request):
    return request.param


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, agent):
    """The folder of a router that was trained with seed 3; leave it as it is."""
    run_dir = tmp_path_factory.mktemp("cli") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        output = succeeds(*train_command(run_dir, agent), "--steps", 512, "--seed", 3)
    assert str(run_dir) in output.replace("\n", "")
    return run_dir


def test_train_writes_run(run_dir, agent):
    loaded = runs.load(run_dir)
    assert loaded.agent == agent
    assert loaded.fit_config.seed == 3
    assert loaded.fit_config.steps == 512


def test_evaluate_lists_tradeoffs(run_dir, agent):
    output = succeeds("evaluate", run_dir)
    assert f"{agent} on {ENV}, test" in output
    tradeoffs = [float(cells[0]) for cells in percent_rows(output)]
    assert len(tradeoffs) >= len(EVAL_TRADEOFFS)
    assert tradeoffs == sorted(tradeoffs)


def test_render_animates_run(run_dir, tmp_path):
    out = tmp_path / "episodes.gif"
    succeeds("render", ENV, "--out", out, "--run", run_dir, "--episodes", 2)
    with Image.open(out) as animation:
        assert animation.n_frames >= 4


@torch.no_grad()
def full_path_accuracy(split):
    """The accuracy of the bundled backbone as a plain network."""
    images = data.load("digits", split)
    backbone = zoo.named("rnr-digits")
    prepared = backbone.prepare(small.pixels_of(images) / 255.0)
    prediction = backbone.plain()(prepared).argmax(1).numpy()
    return (prediction == images.labels).mean()


@pytest.mark.parametrize("split", ["route", "test"])
def test_evaluate_full_matches_plain_network(tmp_path, split):
    succeeds(*train_command(tmp_path))
    rows = percent_rows(succeeds("evaluate", tmp_path, "--split", split))
    accuracy = f"{full_path_accuracy(split):.1%}"
    assert rows
    assert all(cells[1:] == [accuracy, "1.000", "0.000", "0%"] for cells in rows)


def test_evaluate_rejects_unknown_split(tmp_path):
    succeeds(*train_command(tmp_path))
    output = fails(tmp_path, "evaluate", tmp_path, "--split", "val")
    assert "`split` must be one of train, route, test, got 'val'" in output


def test_train_rejects_finished_run(tmp_path):
    command = train_command(tmp_path, "confidence")
    succeeds(*command)
    assert "is finished; choose another" in fails(tmp_path, *command)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--seed", 1], "where seed differ"), (["--no-exits"], "where arguments")],
    ids=["seed", "exits"],
)
def test_train_rejects_changed_options(tmp_path, options, message):
    command = train_command(tmp_path, "confidence")
    succeeds(*command)
    # Without its router the run counts as unfinished.
    (tmp_path / ROUTER_FILE).unlink()
    assert message in fails(tmp_path, *command, *options)


def test_render_without_run_is_random(tmp_path):
    out = tmp_path / "episodes.gif"
    output = succeeds("render", ENV, "--out", out, "--episodes", 1)
    with Image.open(out) as animation:
        assert f"{animation.n_frames} frames" in " ".join(output.split())
        assert animation.n_frames > 1


def test_render_rejects_run_of_other_env(tmp_path):
    run_dir = tmp_path / "run"
    succeeds(*train_command(run_dir))
    env = "RNR-Digits-Channels-v0"
    output = fails(tmp_path, "render", env, "--out", tmp_path / "episodes.gif", "--run", run_dir)
    assert f"`run` must be a router for {env}, got {str(run_dir)!r}, one for {ENV}" in output


# Pretraining


def pretrain_command(env, out):
    return ["pretrain", env, "--out", out, "--epochs", 1, "--glance-epochs", 1]


def test_pretrain_writes_backbone_to_route(tmp_path):
    out = tmp_path / "new" / "weights.safetensors"
    output = succeeds(*pretrain_command(ENV, out))
    assert "accuracy of the full path on `route`" in " ".join(output.split())
    # The checkpoint is gone.
    assert [file.name for file in out.parent.iterdir()] == ["weights.safetensors"]
    assert isinstance(zoo.load(out), Backbone)

    env = gym.make(ENV, weights=str(out))
    obs, _ = env.reset(seed=0)
    assert obs.shape == env.observation_space.shape

    # Written weights are never overwritten.
    assert "`out` must be a new file" in fails(tmp_path, *pretrain_command(ENV, out))

    run_dir = tmp_path / "run"
    succeeds(*train_command(run_dir), "--weights", out)
    assert runs.load(run_dir).fit_config.kwargs == {"weights": str(out)}
