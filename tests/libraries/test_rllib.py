"""RLlib trains on an id, in two processes that make the environments by themselves."""

import pytest
import torch

from tests.fixtures.yardstick import ENV_ID, TRADEOFF, beats_random

ray = pytest.importorskip("ray", reason="RLlib is not installed")
ppo = pytest.importorskip("ray.rllib.algorithms.ppo")

# What other libraries warn of is their own affair.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
UPDATES = 3
BATCH = 2_000


@pytest.fixture
def _cluster():
    """A local cluster that ends with the test."""
    # `local`: its own, even where another one runs.
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_cluster")
def test_ppo_trains_with_two_env_runners(record_property):
    config = (
        ppo.PPOConfig()
        .environment(ENV_ID, env_config={"tradeoff": TRADEOFF})
        .env_runners(num_env_runners=2, num_envs_per_env_runner=8)
        .training(
            train_batch_size_per_learner=BATCH,
            minibatch_size=200,
            num_epochs=4,
            lr=1e-3,
            gamma=1.0,
            entropy_coeff=0.01,
        )
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    for _ in range(UPDATES):
        result = algorithm.train()["env_runners"]
    module = algorithm.get_module()
    num_runners = algorithm.env_runner_group.num_healthy_remote_workers()
    algorithm.stop()

    assert num_runners == 2
    steps = int(result["num_env_steps_sampled_lifetime"])
    assert steps >= UPDATES * BATCH
    assert 1 <= result["episode_len_mean"] <= 3

    @torch.no_grad()
    def choose(obs):
        outputs = module.forward_inference({"obs": torch.as_tensor(obs)})
        return outputs["action_dist_inputs"].argmax(1)

    assert beats_random(choose)
    record_property("steps", steps)
