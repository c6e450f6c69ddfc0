"""The page of a report in a browser: it fits, can be read, and needs no network and no mouse."""

import re

import pytest

from tests.fixtures.browser import DESKTOP, PHONE

SMALLEST = 11
"""Pixels of the smallest letters that are read without effort."""
WIDTHS = {"phone": PHONE, "wider phone": {**PHONE, "width": 420}, "desktop": DESKTOP}

LETTERS = """
() => [...document.querySelectorAll("body *")]
    .filter(element => element.checkVisibility())
    .filter(element => [...element.childNodes].some(
        node => node.nodeType === Node.TEXT_NODE && node.data.trim()
    ))
    .filter(element => !["TITLE", "STYLE"].includes(element.tagName.toUpperCase()))
    .map(element => {
        const box = element.ownerSVGElement;
        const scale = box ? box.getBoundingClientRect().width / box.viewBox.baseVal.width : 1;
        return [parseFloat(getComputedStyle(element).fontSize) * scale, element.textContent.trim()];
    })
"""
"""Size in pixels, as they are shown, of the letters of every text."""

TEXT_COLOURS = """
() => [...document.querySelectorAll("p, figcaption, svg.chart text, summary, td, .right, .wrong")]
    .map(element => {
        const style = getComputedStyle(element);
        return element.tagName === "text" ? style.fill : style.color;
    })
"""


@pytest.fixture
def opened(browser, report_dir):
    """Opens the page, and gives it back with what it asked of the network and said in the console.

    Attributes of the page: `requests` and `messages`.
    """
    contexts = []

    def opened(viewport, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.requests = []
        page.messages = []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.messages.append(message.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.goto((report_dir / "report.html").as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()


def luminance(colour):
    """Relative luminance, as the guidelines for accessible pages define it, of `rgb(r, g, b)`."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first, second):
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("viewport", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("unfolded", [False, True], ids=["folded", "unfolded"])
def test_page_fits_width(opened, viewport, unfolded):
    page = opened(viewport)
    if unfolded:
        page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


@pytest.mark.parametrize("viewport", WIDTHS.values(), ids=WIDTHS)
def test_page_letters_are_large_enough(opened, viewport):
    letters = opened(viewport).evaluate(LETTERS)
    assert len(letters) > 50
    small = [(size, text) for size, text in letters if size < SMALLEST]
    assert small == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_text_has_contrast(opened, scheme):
    """Of 4.5 or more, as the guidelines for accessible pages ask for."""
    page = opened(PHONE, scheme)
    surface = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(surface) < 0.5) == (scheme == "dark")
    colours = set(page.evaluate(TEXT_COLOURS))
    assert min(contrast(colour, surface) for colour in colours) >= 4.5


def test_page_pictures_stand_one_in_a_row_on_phone(opened):
    page = opened(PHONE)
    boxes = [figure.bounding_box() for figure in page.query_selector_all("figure")]
    assert len(boxes) == 7
    bottoms = [box["y"] + box["height"] for box in boxes]
    assert all(box["y"] >= bottom for box, bottom in zip(boxes[1:], bottoms, strict=False))


def test_page_pictures_stand_two_in_a_row_on_desktop(opened):
    page = opened(DESKTOP)
    first, second, third = [
        figure.bounding_box() for figure in page.query_selector_all("figure")[:3]
    ]
    assert first["y"] == second["y"]
    assert third["y"] >= first["y"] + first["height"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_asks_network_for_nothing(opened, report_dir, scheme):
    page = opened(DESKTOP, scheme)
    page.wait_for_load_state("networkidle")
    others = [url for url in page.requests if not url.startswith("data:")]
    assert others == [(report_dir / "report.html").as_uri()]
    assert page.messages == []


def test_page_works_without_scripts(browser, report_dir):
    context = browser.new_context(viewport=PHONE, java_script_enabled=False)
    page = context.new_page()
    page.goto((report_dir / "report.html").as_uri())
    assert page.locator("svg.chart").count() == 5
    page.get_by_text("Paired differences").click()
    assert page.get_by_role("region", name="Paired differences").is_visible()
    context.close()


def test_page_tables_unfold_by_keyboard(opened):
    page = opened(PHONE)
    region = page.get_by_role("region", name="Accuracy at equal compute")
    assert not region.is_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert region.is_visible()

    # The table is wider than the phone, and scrolls by keyboard as well.
    page.keyboard.press("Tab")
    assert region.evaluate("element => element === document.activeElement")
    assert region.evaluate("element => element.scrollWidth > element.clientWidth")


def test_page_pictures_have_names_for_screen_readers(opened):
    page = opened(DESKTOP)
    for name in ("Accuracy against compute of every router", "Compute against severity"):
        assert page.get_by_role("img", name=name, exact=True).count() == 1
    for picture in page.get_by_role("img").all():
        assert picture.evaluate("element => element.querySelector('title').textContent.trim()")


def test_page_gallery_shows_pixels(opened):
    """Every image has more than one colour, so the sheet was found and cut."""
    page = opened(DESKTOP)
    pictures = page.locator("svg.image").all()
    assert len(pictures) == 12
    for picture in pictures:
        # A picture of one colour compresses to a few hundred bytes.
        assert len(picture.screenshot()) > 500


def test_page_prints_in_light_colours(opened):
    page = opened(DESKTOP, "dark")
    page.emulate_media(media="print", color_scheme="dark")
    surface = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert luminance(surface) == pytest.approx(1.0)
