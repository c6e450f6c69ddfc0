"""d3rlpy learns from the data set of random sub-paths that `rnr-gym export` writes."""

import pytest

from tests.fixtures.commands import succeeds
from tests.fixtures.yardstick import TRADEOFF, beats_random

d3rlpy = pytest.importorskip("d3rlpy", reason="d3rlpy is not installed")
encoders = pytest.importorskip("d3rlpy.models.encoders")
pytest.importorskip("minari", reason="offline data sets need the extra `minari`")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = 2_000


def test_cql_learns_from_exported_episodes(tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    succeeds("export", "RNR-CIFAR10-Table-v0", "--behaviours", "random")
    dataset, env = d3rlpy.datasets.get_minari("rnr/cifar10-table/random-v0")
    assert dataset.size() == len(env.unwrapped.source.labels)

    d3rlpy.seed(0)
    config = d3rlpy.algos.DiscreteCQLConfig(
        batch_size=256,
        learning_rate=3e-4,
        gamma=1.0,
        alpha=0.1,
        target_update_interval=200,
        encoder_factory=encoders.VectorEncoderFactory(hidden_units=[64, 64]),
    )
    learner = config.create(device="cpu:0")
    learner.fit(
        dataset,
        n_steps=STEPS,
        n_steps_per_epoch=STEPS,
        show_progress=False,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )
    # Better than the behaviour that it has seen, at low and at high prices of compute.
    for tradeoff in (TRADEOFF, 0.3, 1.0):
        assert beats_random(learner.predict, tradeoff)
    record_property("steps", STEPS)
