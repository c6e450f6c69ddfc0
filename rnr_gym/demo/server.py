"""Serving the page, by default to this machine only."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from rnr_gym.data import photos
from rnr_gym.data.cifar import CIFAR10
from rnr_gym.demo import samples
from rnr_gym.demo.contest import Contest

LOOPBACK = "127.0.0.1"
FIRST_PORT = 7860
NUM_PORTS = 100
"""Without a port, these are tried from `FIRST_PORT` on."""
CLASSIFIER = "rnr-cifar10"
AGENTS = ("ppo", "dqn")


def serve(host: str, port: int | None, open_browser: bool, data_root: str | None) -> None:
    """Show the page until Ctrl-C.

    Args:
        host: the address to listen at.
        port: None for the first free one.
        open_browser: whether to open the page in the user's browser.
        data_root: folder of the images.

    Raises:
        ValueError: Gradio is not installed, or host or port cannot be listened at.
    """
    try:
        with (
            listen(host, port) as listener,
            _interrupted_by(signal.SIGTERM),
            TemporaryDirectory(prefix="rnr-gym-demo-") as temp_dir,
        ):
            app = _app(temp_dir, data_root)
            address = url(listener)
            print(f"{address} (Ctrl-C stops it)", flush=True)
            if not is_loopback(listener):
                print(
                    "warning: others who can reach this machine can open the page, too", flush=True
                )
            if open_browser:
                # In a thread, because browsers of a terminal run until they are closed.
                threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
            _run(app, listener)
    except KeyboardInterrupt:
        pass
    print("stopped", flush=True)


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens at a port, or without one at the first free one.

    Raises `ValueError` if that is not possible.
    """
    ports = range(FIRST_PORT, FIRST_PORT + NUM_PORTS)
    if port is not None:
        ports = range(port, port + 1)
    try:
        family, _, _, _, _ = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise _not_an_address(host, error) from error

    for candidate in ports:
        try:
            return socket.create_server((host, candidate), family=family, backlog=128)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _not_an_address(host, error) from error
            if error.errno != errno.EADDRINUSE:
                raise ValueError(
                    f"`port` must be one that can be listened at, got {candidate} ({error})"
                ) from error
    if port is None:
        raise ValueError(f"`port` must be given: {ports[0]} to {ports[-1]} are all in use")
    raise ValueError(f"`port` must be free, got {port}, which is in use; leave it out for another")


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url(listener: socket.socket) -> str:
    """Where a browser on this machine finds the page."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        # All addresses of the machine, this one among them.
        return f"http://{LOOPBACK}:{port}"
    if address.version == 6:
        return f"http://[{host}]:{port}"
    return f"http://{host}:{port}"


@contextmanager
def _interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Let a signal, by which supervisors end a process, do what Ctrl-C does."""
    previous = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


def _not_an_address(host: str, error: OSError) -> ValueError:
    return ValueError(f"`host` must be an address of this machine, got {host!r} ({error})")


def _app(temp_dir: str, data_root: str | None) -> Any:
    """The application that answers requests.

    Args:
        temp_dir: where uploads and thumbnails are kept for as long as they are needed.
        data_root: folder of the images.
    """
    # Gradio reads them when it is imported and later. No other host is told that it runs.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = temp_dir
    try:
        import gradio
        from fastapi import FastAPI
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`demo` needs a package that is not installed ({error.name}); "
            'pip install "rnr-gym[demo]"'
        ) from error

    from rnr_gym.demo import page

    contest = Contest.bundled(CLASSIFIER, AGENTS, CIFAR10.classes)
    shown = samples.load(contest.backbone, data_root)
    # Every option that Gradio would otherwise read from the environment is given.
    return gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        page.build(contest, shown),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        # Far above what is read, so that the page itself says what is too large.
        max_file_size=10 * photos.MAX_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=page.theme(),
        css_paths=page.CSS,
    )


def _run(app: Any, listener: socket.socket) -> None:
    import uvicorn

    # Open pages hold a connection that never ends by itself.
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])
