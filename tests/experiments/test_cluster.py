"""Comparisons on a Ray cluster, as far as they need none; `tests/libraries/test_ray.py` has one."""

import sys

import pytest

import rnr_gym
from rnr_gym.agents import FitConfig
from rnr_gym.experiments import cluster, runs
from rnr_gym.experiments.report import router_dir
from tests.fixtures.commands import fails
from tests.fixtures.digits import ENV
from tests.fixtures.files import snapshot


@pytest.fixture
def fitted():
    """A router as a worker of the cluster returns it."""
    fit_config = FitConfig(ENV, progress=False)
    return fit_config, cluster._fit("full", fit_config, rnr_gym.__version__)


def test_ray_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    output = fails(tmp_path, "compare", ENV, "--out", tmp_path / "out", "--engine", "ray")
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
