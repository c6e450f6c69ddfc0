"""Where the page is served: by default at a free port of this machine alone."""

import re
import signal
import socket
import sys
from queue import SimpleQueue

import pytest

from rnr_gym.demo import server
from tests.fixtures.commands import fails, succeeds

NO_BROWSER = "--no-open"


@pytest.fixture
def taken():
    """A port that is in use."""
    with socket.create_server((server.LOOPBACK, 0)) as listener:
        yield listener.getsockname()[1]


def test_first_free_port_is_used(taken, monkeypatch):
    monkeypatch.setattr(server, "FIRST_PORT", taken)
    with server.listen(server.LOOPBACK, None) as listener:
        assert taken < listener.getsockname()[1] < taken + server.NUM_PORTS


def test_no_free_port_raises(taken, monkeypatch):
    monkeypatch.setattr(server, "FIRST_PORT", taken)
    monkeypatch.setattr(server, "NUM_PORTS", 1)
    with pytest.raises(ValueError, match=f"`port` must be given: {taken} to {taken} are all"):
        server.listen(server.LOOPBACK, None)


@pytest.mark.parametrize(
    ("host", "expected", "closed"),
    [
        ("127.0.0.1", "http://127.0.0.1:{}", True),
        ("localhost", "http://127.0.0.1:{}", True),
        ("0.0.0.0", "http://127.0.0.1:{}", False),
    ],
)
def test_host_decides_who_reaches_the_page(host, expected, closed):
    with server.listen(host, None) as listener:
        # `localhost` may be the same machine's other address.
        url = server.url(listener).replace("[::1]", server.LOOPBACK)
        assert url == expected.format(listener.getsockname()[1])
        assert server.is_loopback(listener) is closed


def test_ipv6_address_has_brackets():
    try:
        listener = server.listen("::1", None)
    except ValueError:
        pytest.skip("this machine has no IPv6")
    with listener:
        assert server.url(listener).startswith("http://[::1]:")
        assert server.is_loopback(listener)


# The command, without the page


@pytest.fixture
def opened(monkeypatch):
    """The addresses that a browser is asked to open; no page is built or served."""
    # A queue, since it is filled by another thread.
    addresses = SimpleQueue()
    monkeypatch.setattr(server, "_app", lambda temp_dir, data_root: None)
    monkeypatch.setattr(server, "_run", lambda app, listener: None)
    monkeypatch.setattr(server.webbrowser, "open", addresses.put)
    return addresses


def test_command_says_where_the_page_is(opened):
    first, last = succeeds("demo", NO_BROWSER).splitlines()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+ \(Ctrl-C stops it\)", first)
    assert last == "stopped"
    assert opened.empty()


def test_command_opens_browser(opened):
    url = succeeds("demo").split()[0]
    assert opened.get(timeout=10) == url


def test_command_warns_where_others_can_connect(opened):
    output = succeeds("demo", NO_BROWSER, "--host", "0.0.0.0")
    assert "warning: others who can reach this machine can open the page" in output


def test_interrupt_at_start_is_no_error(opened, monkeypatch):
    def interrupt(temp_dir, data_root):
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "_app", interrupt)
    assert succeeds("demo", NO_BROWSER) == "stopped\n"


def test_termination_stops_like_an_interrupt(opened, monkeypatch):
    """And afterwards the signal does what it did before."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(server, "_run", lambda app, listener: signal.raise_signal(signal.SIGTERM))
    assert succeeds("demo", NO_BROWSER).endswith("stopped\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_help_names_the_extra():
    assert 'pip install "rnr-gym[demo]"' in succeeds("demo", "--help")


# Errors of the command


def test_port_in_use_fails(tmp_path, taken):
    line = fails(tmp_path, "demo", NO_BROWSER, "--port", taken)
    assert f"`port` must be free, got {taken}, which is in use" in line


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_port_out_of_range_fails(tmp_path, port):
    assert "`port` must be" in fails(tmp_path, "demo", NO_BROWSER, "--port", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_host_of_another_machine_fails(tmp_path, host):
    line = fails(tmp_path, "demo", NO_BROWSER, "--host", host)
    assert f"`host` must be an address of this machine, got '{host}'" in line


def test_missing_gradio_fails(tmp_path, monkeypatch):
    """The error says what to install, in a form that shells accept."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    # What the command sets for Gradio ends with this test.
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    line = fails(tmp_path, "demo", NO_BROWSER)
    assert 'pip install "rnr-gym[demo]"' in line
