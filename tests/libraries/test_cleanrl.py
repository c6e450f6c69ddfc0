"""A file of CleanRL, as it is published, run as `python -m cleanrl.dqn --env-id ...`."""

import runpy
import sys

import pytest
import torch

from tests.fixtures.yardstick import DEFAULT_TRADEOFF, ENV_ID, beats_random

pytest.importorskip("cleanrl.dqn", reason="CleanRL is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 6_000


def test_dqn_trains_by_its_id(tmp_path, monkeypatch, record_property):
    # Where it writes its logs.
    monkeypatch.chdir(tmp_path)
    options = {
        "--env-id": ENV_ID,
        "--total-timesteps": STEPS,
        "--learning-starts": 500,
        "--gamma": 1.0,
        "--cuda": False,
    }
    words = [str(word) for option in options.items() for word in option]
    monkeypatch.setattr(sys, "argv", ["dqn", *words])
    script = runpy.run_module("cleanrl.dqn", run_name="__main__")

    assert script["global_step"] == STEPS - 1
    network = script["q_network"]
    with torch.no_grad():
        # Its options name no trade-off.
        assert beats_random(lambda obs: network(torch.as_tensor(obs)).argmax(1), DEFAULT_TRADEOFF)
    record_property("steps", STEPS)
