"""Where images are looked for and kept in tests of data sets, and no network."""

import socket

import pytest
from torchvision import datasets


@pytest.fixture
def cache_dir(monkeypatch, tmp_path):
    """An empty cache, not there yet."""
    path = tmp_path / "cache"
    monkeypatch.setenv("RNR_GYM_CACHE", str(path))
    return path


@pytest.fixture
def data_root(monkeypatch, tmp_path):
    """The folder where images are looked for, not there yet."""
    path = tmp_path / "images"
    monkeypatch.setenv("RNR_GYM_DATA", str(path))
    return path


@pytest.fixture
def no_network(monkeypatch):
    """Fetching finds no server, whatever the machine that runs the tests can reach."""
    # A port that was free a moment ago, so that the connection is refused at once.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    monkeypatch.setenv("no_proxy", "*")
    for reader in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(reader, "url", f"http://127.0.0.1:{port}/{reader.filename}")
