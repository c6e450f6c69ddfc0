"""Ray: a comparison on a cluster of two workers."""

import re
import socket

import pytest

from rnr_gym.agents import FitConfig
from rnr_gym.experiments import cluster
from tests.fixtures.commands import fails, succeeds
from tests.fixtures.digits import ENV
from tests.fixtures.files import snapshot

ray = pytest.importorskip("ray")

STEPS = 2048
COMPARE = ["compare", ENV, "--agents", "static", "confidence", "random", "ppo", "--steps", STEPS]
LIMITS = ["--seeds", 2, "--jobs", 2]


@pytest.fixture(scope="module")
def address():
    """Where a cluster of this machine is found, two workers with a core each."""
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


@pytest.fixture
def _found(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)


def files(report_dir):
    """The names of all files of a report, but those of logs, which contain the time."""
    names = {file.relative_to(report_dir).as_posix() for file in snapshot(report_dir)}
    return {name for name in names if "tfevents" not in name}


def paths_digest(output):
    return re.search(r"digest of all paths: (\w{12})", output).group(1)


@pytest.mark.usefixtures("_found")
@pytest.mark.slow
def test_a_cluster_finds_what_one_machine_finds(tmp_path, record_property):
    here = succeeds(*COMPARE, *LIMITS, "--out", tmp_path / "here")
    there = succeeds(*COMPARE, *LIMITS, "--out", tmp_path / "there", "--engine", "ray")
    assert paths_digest(there) == paths_digest(here)
    record_property("steps", 4 * STEPS)  # PPO with two seeds, twice
    # Its connection was closed.
    assert not ray.is_initialized()

    # Logs and configurations are here, too, so the report is whole.
    assert "verified" in succeeds("validate", tmp_path / "there")
    assert files(tmp_path / "there") == files(tmp_path / "here")


@pytest.mark.usefixtures("_found")
def test_errors_of_the_cluster_are_errors_here(tmp_path):
    missing = FitConfig(ENV, {"weights": str(tmp_path / "missing.safetensors")}, progress=False)
    with cluster.connected(), pytest.raises(ValueError, match="`weights` must be"):
        list(cluster.fit_all([("full", missing)], tmp_path, jobs=None))


@pytest.mark.usefixtures("_found")
def test_a_connection_of_the_user_stays_open():
    ray.init(address="auto", log_to_driver=False)
    with cluster.connected():
        assert ray.is_initialized()
    assert ray.is_initialized()
    ray.shutdown()


def test_no_cluster(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # No cluster of somebody else's, either.
    monkeypatch.setattr("ray._private.services._find_address_from_flag", lambda flag: set())
    output = fails(tmp_path, *COMPARE, "--out", tmp_path / "out", "--engine", "ray")
    assert '`engine="ray"` needs a Ray cluster, and none was found' in output


def test_nobody_at_the_address(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    output = fails(tmp_path, *COMPARE, "--out", tmp_path / "out", "--engine", "ray")
    assert f"RAY_ADDRESS is '127.0.0.1:{port}'" in output
