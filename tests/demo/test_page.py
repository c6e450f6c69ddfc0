"""The page in a browser, served by the command itself."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import photos
from tests.fixtures.browser import DESKTOP, PHONE

pytestmark = pytest.mark.slow
WAIT_SECONDS = 30
AGENTS = ("ppo", "dqn")


class Served:
    """The command as a process of its own.

    Attributes:
        url: where the page is.
        process: the process.
        temp_dir: its folder for temporary files.
    """

    def __init__(self, temp_dir):
        self.temp_dir = temp_dir / "tmp"
        self.temp_dir.mkdir()
        self.errors = temp_dir / "errors.txt"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rnr_gym.cli", "demo", "--no-open"],
                env={**os.environ, "TMPDIR": str(self.temp_dir)},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        # The first line comes when all is ready.
        self.url = self.process.stdout.readline().partition(" ")[0]
        if not self.url.startswith("http"):
            pytest.fail(self.url + self.stop() + self.errors.read_text())

    def stop(self):
        """End the process as Ctrl-C does; what it said since its address."""
        self.process.send_signal(signal.SIGINT)
        output, _ = self.process.communicate(timeout=WAIT_SECONDS)
        assert "Traceback" not in self.errors.read_text()
        return output


@pytest.fixture(scope="module")
def served(small_cifar, tmp_path_factory):
    """The demo with samples of random pixels."""
    demo = Served(tmp_path_factory.mktemp("demo"))
    yield demo
    if demo.process.poll() is None:
        demo.stop()


@pytest.fixture
def visit(browser):
    """Open an address; the test fails on an error in the console or a request to another host."""
    contexts = []
    problems = []

    def note_request(request):
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            problems.append(f"request to {request.url}")

    def note_message(message):
        if message.type == "error":
            problems.append(f"console: {message.text}")

    def visit(url, viewport=DESKTOP, **kwargs):
        context = browser.new_context(viewport=viewport, **kwargs)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * WAIT_SECONDS)
        page.on("request", note_request)
        page.on("console", note_message)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


def compute(page, agent):
    return float(page.locator(f"#rnr-{agent} .rnr-compute").inner_text())


def wait_for_text(page, selector, pattern):
    page.locator(selector).filter(has_text=re.compile(pattern)).first.wait_for()


def move_budget(page, key, budget):
    """Move the slider by the keyboard, and wait for the cards to follow."""
    page.locator("#rnr-budget input[type=range]").press(key)
    wait_for_text(page, ".rnr-caption", f"Budget {budget}")


def upload(page, file):
    page.locator("#rnr-upload input[type=file]").set_input_files(file)


def overflow(page):
    """How many pixels of the page lie to the right of the screen."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture
def picture(tmp_path):
    """A photograph's stand-in, larger than what the network takes."""
    pictures, _ = photos.part(10, 1)
    pixels = np.moveaxis(pictures[1], 0, -1)
    file = tmp_path / "picture.png"
    Image.fromarray(pixels).resize((320, 320), Image.Resampling.NEAREST).save(file)
    return file


def test_budget_changes_what_both_routers_do(served, visit):
    page = visit(served.url)
    page.locator("#rnr-ppo").wait_for()

    move_budget(page, "Home", "0.08")
    low = {agent: page.locator(f"#rnr-{agent}").inner_html() for agent in AGENTS}
    for agent in AGENTS:
        assert compute(page, agent) < 0.1
        assert "exit at the glance" in low[agent]

    move_budget(page, "End", "0.62")
    for agent in AGENTS:
        assert compute(page, agent) > 0.5
        card = page.locator(f"#rnr-{agent}")
        assert "full" in card.locator(".rnr-path").inner_text()
        assert re.fullmatch(r"\d+\.\d ms", card.locator(".rnr-time").inner_text())
        # The picture is another one, too.
        assert card.locator("img").get_attribute("src") not in low[agent]


def test_sample_is_shown_when_chosen(served, visit):
    page = visit(served.url)
    easy, hard = (page.locator("#rnr-samples button").nth(idx) for idx in (0, 6))
    easy.click()
    wait_for_text(page, ".rnr-caption", "finds easy")
    hard.click()
    wait_for_text(page, ".rnr-caption", "finds hard")
    assert page.locator(".rnr-badge", has_text=re.compile("right|wrong")).count() == 3


def test_upload_is_routed_and_others_are_refused(served, visit, picture, tmp_path):
    page = visit(served.url)
    page.locator("#rnr-ppo").wait_for()
    upload(page, picture)
    wait_for_text(page, ".rnr-caption", "Your image")
    assert page.locator(".rnr-badge", has_text="no label").count() == 3
    before = page.locator("#rnr-answers").inner_html()

    no_image = tmp_path / "words.png"
    no_image.write_text("these are words")
    upload(page, no_image)
    wait_for_text(page, "#rnr-message", "not an image that can be read here")
    # What was there stays.
    assert page.locator("#rnr-answers").inner_html() == before

    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(picture.read_bytes()[:-200])
    upload(page, truncated)
    wait_for_text(page, "#rnr-message", "damaged")

    # The page can still be used, and the message is over.
    move_budget(page, "Home", "0.08")
    upload(page, picture)
    page.locator("#rnr-message [role=alert]").wait_for(state="detached")
    assert not [*served.temp_dir.rglob("*words.png"), *served.temp_dir.rglob("*picture.png")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(served, visit, scheme):
    page = visit(served.url, PHONE, color_scheme=scheme)
    page.locator("#rnr-dqn").wait_for()
    assert overflow(page) <= 0
    ppo, dqn = (page.locator(f"#rnr-{agent}").bounding_box() for agent in AGENTS)
    assert dqn["y"] > ppo["y"] + ppo["height"]

    # The budget stays on the screen while the second card is read.
    page.locator("#rnr-dqn").scroll_into_view_if_needed()
    page.mouse.wheel(0, 300)
    page.wait_for_timeout(300)
    assert page.locator("#rnr-budget").bounding_box()["y"] >= 0


def test_cards_stand_side_by_side_on_a_desktop(served, visit):
    page = visit(served.url)
    ppo, dqn = (page.locator(f"#rnr-{agent}").bounding_box() for agent in AGENTS)
    assert dqn["y"] == ppo["y"]
    assert dqn["x"] >= ppo["x"] + ppo["width"]
    assert overflow(page) <= 0


def test_page_without_samples_asks_for_an_upload(contest, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    # Gradio takes seconds to import.
    from rnr_gym.demo import page

    components = page.build(contest, []).get_config_file()["components"]
    texts = [component["props"].get("value") for component in components]
    assert page.NO_SAMPLES.strip() in texts
    assert page.NO_IMAGE in texts
    types = [component["type"] for component in components]
    assert "gallery" not in types
    assert "file" in types


def test_interrupt_ends_the_demo_cleanly(served, browser):
    """While a page is open, and nothing is left behind. The last test, because it ends the demo."""
    page = browser.new_page()
    page.goto(served.url)
    page.locator("#rnr-ppo").wait_for()
    assert served.stop() == "stopped\n"
    page.close()
    assert served.process.returncode == 0
    assert list(served.temp_dir.iterdir()) == []
