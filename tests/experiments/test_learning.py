"""Learning curves, from logs as TensorBoard writes them."""

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from rnr_gym.experiments.learning import POINTS, REWARD, learning_curve


def write_log(run_dir, points, suffix="", tag=REWARD):
    """A log with a reward at each step, and another figure besides."""
    with SummaryWriter(str(run_dir / "tensorboard"), filename_suffix=suffix) as writer:
        for step, reward in points:
            writer.add_scalar(tag, reward, step)
            writer.add_scalar("train/loss", 7.0, step)


def test_curve_has_logged_rewards(tmp_path):
    write_log(tmp_path, [(100, 0.25), (200, 0.5), (300, 0.75)])
    curve = learning_curve("ppo", 1, tmp_path)
    assert (curve.router, curve.seed) == ("ppo", 1)
    assert curve.steps == [100, 200, 300]
    assert curve.reward == [0.25, 0.5, 0.75]


def test_curve_of_many_points_is_thinned_to_means(tmp_path):
    steps = np.arange(1, 20 * POINTS + 1)
    write_log(tmp_path, [(step, step % 2) for step in steps])
    curve = learning_curve("dqn", 0, tmp_path)
    assert curve.steps == list(range(20, 20 * POINTS + 1, 20))
    assert curve.reward == pytest.approx([0.5] * POINTS)


def test_curve_of_resumed_run_keeps_later_values(tmp_path):
    """A resumed run repeats the steps after its last checkpoint."""
    write_log(tmp_path, [(100, 0.25), (200, 0.5)], suffix=".1")
    write_log(tmp_path, [(200, 0.75), (300, 1.0)], suffix=".2")
    curve = learning_curve("ppo", 0, tmp_path)
    assert curve.steps == [100, 200, 300]
    assert curve.reward == [0.25, 0.75, 1.0]


def test_curve_needs_logs(tmp_path):
    assert learning_curve("static", 0, tmp_path) is None


def test_curve_needs_rewards(tmp_path):
    write_log(tmp_path, [(100, 0.25)], tag="rollout/other")
    assert learning_curve("ppo", 0, tmp_path) is None


def test_curve_of_damaged_log_has_what_can_be_read(tmp_path):
    write_log(tmp_path, [(100, 0.25), (200, 0.5)])
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    curve = learning_curve("ppo", 0, tmp_path)
    assert curve.reward[0] == 0.25
