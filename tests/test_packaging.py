"""The package as it is published: what is in it, and that it works where only it is installed."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rnr_gym"
NOT_CODE = {".pyc"}
EXAMPLE = """
import gymnasium as gym

import rnr_gym as rnr

env = gym.make("rnr_gym:RNR-Digits-v0", split="test", tradeoff=0.1)
env.reset(seed=0)
print(env.step(3)[4]["layer"])
classifier = rnr.RoutedClassifier.from_pretrained("rnr-cifar10")
print(classifier.agent)
print(rnr.__file__)
"""


@pytest.fixture(scope="module")
def dist_dir(tmp_path_factory):
    """A folder with the source distribution, and with the wheel that was built from it."""
    for name in ("build", "hatchling"):
        pytest.importorskip(name, reason="packages are built with the extra `dev`")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def files_of_package():
    """All that belongs to the package, relative to the root."""
    found = set()
    for path in PACKAGE.rglob("*"):
        if path.is_file() and path.suffix not in NOT_CODE:
            found.add(path.relative_to(ROOT).as_posix())
    return found


@pytest.mark.slow
def test_wheel_has_the_whole_package(dist_dir):
    (wheel,) = dist_dir.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files_of_package()


@pytest.mark.slow
def test_source_distribution_has_the_whole_package(dist_dir):
    (source,) = dist_dir.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of_package() <= names
    assert {"README.md", "LICENSE", "pyproject.toml"} <= names


@pytest.mark.slow
def test_description_can_be_shown(dist_dir):
    pytest.importorskip("twine", reason="packages are checked with the extra `dev`")
    files = [str(file) for file in dist_dir.iterdir()]
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_installed_wheel_works(dist_dir, tmp_path):
    (wheel,) = dist_dir.glob("*.whl")
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True, capture_output=True)

    # Outside the checkout, so that nothing but the wheel can be imported.
    env = {**os.environ, "PYTHONPATH": str(target)}
    shown = subprocess.run(
        [sys.executable, "-c", EXAMPLE],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    layer, agent, file = shown.stdout.splitlines()
    assert layer == "1"
    assert agent == "ppo"
    assert Path(file).is_relative_to(target)
    listed = subprocess.run(
        [str(target / "bin" / "rnr-gym"), "envs"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "RNR-CIFAR10-v0" in listed.stdout
