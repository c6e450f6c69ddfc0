"""Comparisons on a Ray cluster. What needs Ray runs where it is installed."""

import re
import socket
import sys

import pytest

import rnr_gym
from rnr_gym.agents import FitConfig
from rnr_gym.experiments import cluster, runs
from rnr_gym.experiments.report import router_dir
from tests.fixtures.commands import fails, succeeds
from tests.fixtures.digits import ENV
from tests.fixtures.files import snapshot

COMPARE = ["compare", ENV, "--agents", "static", "confidence", "random", "ppo", "--steps", 2048]
LIMITS = ["--seeds", 2, "--jobs", 2]


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray")


@pytest.fixture(scope="module")
def address(ray):
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


@pytest.fixture
def fitted():
    """A router as a worker of the cluster returns it."""
    fit_config = FitConfig(ENV, progress=False)
    return fit_config, cluster._fit("full", fit_config, rnr_gym.__version__)


def files(report_dir):
    """The names of all files of a report, but those of logs, which contain the time."""
    names = {file.relative_to(report_dir).as_posix() for file in snapshot(report_dir)}
    return {name for name in names if "tfevents" not in name}


def paths_digest(output):
    return re.search(r"digest of all paths: (\w{12})", output).group(1)


@pytest.mark.usefixtures("_found")
@pytest.mark.slow
def test_a_cluster_finds_what_one_machine_finds(ray, tmp_path):
    here = succeeds(*COMPARE, *LIMITS, "--out", tmp_path / "here")
    there = succeeds(*COMPARE, *LIMITS, "--out", tmp_path / "there", "--engine", "ray")
    assert paths_digest(there) == paths_digest(here)
    # Its connection was closed.
    assert not ray.is_initialized()

    # Logs and configurations are here, too, so the report is whole.
    assert "verified" in succeeds("validate", tmp_path / "there")
    assert files(tmp_path / "there") == files(tmp_path / "here")


@pytest.mark.usefixtures("_found")
def test_errors_of_the_cluster_are_errors_here(ray, tmp_path):
    missing = FitConfig(ENV, {"weights": str(tmp_path / "missing.safetensors")}, progress=False)
    with cluster.connected(), pytest.raises(ValueError, match="`weights` must be"):
        list(cluster.fit_all([("full", missing)], tmp_path, jobs=None))


@pytest.mark.usefixtures("_found")
def test_a_connection_of_the_user_stays_open(ray):
    ray.init(address="auto", log_to_driver=False)
    with cluster.connected():
        assert ray.is_initialized()
    assert ray.is_initialized()
    ray.shutdown()


def test_no_cluster(ray, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # No cluster of somebody else's, either.
    monkeypatch.setattr("ray._private.services._find_address_from_flag", lambda flag: set())
    output = fails(tmp_path, *COMPARE, "--out", tmp_path / "out", "--engine", "ray")
    assert '`engine="ray"` needs a Ray cluster, and none was found' in output


def test_nobody_at_the_address(ray, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    output = fails(tmp_path, *COMPARE, "--out", tmp_path / "out", "--engine", "ray")
    assert f"RAY_ADDRESS is '127.0.0.1:{port}'" in output


def test_ray_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    output = fails(tmp_path, *COMPARE, "--out", tmp_path / "out", "--engine", "ray")
    assert 'pip install "rnr-gym[ray]"' in output


def test_write_makes_a_run(fitted, tmp_path):
    fit_config, files = fitted
    # Something that a fit was interrupted in, and has left.
    run_dir = router_dir(tmp_path, "full", 0)
    runs.start_or_resume(run_dir, runs.identity("full", fit_config), "router.safetensors")
    (run_dir / "old log").write_text("of steps that were lost")

    cluster._write(files, "full", fit_config, tmp_path)
    assert sorted(file.name for file in snapshot(run_dir)) == ["config.json", "router.safetensors"]
    assert runs.load(run_dir).agent == "full"


def test_write_rejects_routers_of_other_images(fitted, tmp_path):
    fit_config, files = fitted
    config = files["config.json"].replace(b'"source": "', b'"source": "0')
    with pytest.raises(ValueError, match="must have the same images and weights, one differs in"):
        cluster._write({**files, "config.json": config}, "full", fit_config, tmp_path)
    assert snapshot(tmp_path) == {}


def test_workers_have_the_same_version():
    with pytest.raises(RuntimeError, match=r"must have rnr-gym 9\.9, one has"):
        cluster._fit("full", FitConfig(ENV, progress=False), "9.9")
