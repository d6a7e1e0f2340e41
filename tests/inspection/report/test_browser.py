"""Pages in Chromium: no requests, no console messages, no empty drawing, no horizontal scrolling."""

from pathlib import Path

import pytest

from tests.inspection.report.browser import CHROMIUM, Browser, browser

# [label, whether it has a visible size, number of shapes of an SVG or width of an image] of each drawing.
_DESCRIBE_DRAWINGS = """[...document.querySelectorAll('svg, img')].map(element => {
    const box = element.getBoundingClientRect();
    const shapes = element.tagName === 'IMG' ? element.naturalWidth : element.querySelectorAll('path, image').length;
    return [element.getAttribute('aria-label') || element.alt, box.width > 50 && box.height > 20, shapes];
})"""


@pytest.fixture(scope="module")
def chromium() -> Browser:  # type: ignore[misc]
    if not CHROMIUM:
        pytest.skip("Chromium is not installed")
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("kind", ["images", "tiles", "sequences", "vectors", "ids", "several"])
def test_every_drawing_is_visible_and_fits_the_screen(kind: str, pages: dict[str, Path], chromium: Browser) -> None:
    for width, dark in ((1280, False), (390, True)):
        chromium.open(pages[kind], width, dark=dark)
        assert chromium.requests() == []
        assert chromium.console_messages() == []
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        drawings = chromium.evaluate(_DESCRIBE_DRAWINGS)
        assert len(drawings) >= 2
        for label, visible, shapes in drawings:
            assert visible, label
            assert shapes > 1, label
        background = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")


def test_text_in_drawings_has_the_colour_of_the_page(pages: dict[str, Path], chromium: Browser) -> None:
    colours = "[...new Set([...document.querySelectorAll('svg text')].map(text => getComputedStyle(text).fill))]"
    chromium.open(pages["ids"], 1280)
    light = chromium.evaluate(colours)
    chromium.open(pages["ids"], 1280, dark=True)
    dark = chromium.evaluate(colours)
    assert "rgb(28, 33, 40)" in light
    assert "rgb(227, 230, 235)" in dark
    assert "rgb(28, 33, 40)" not in dark
    assert "rgb(0, 0, 0)" not in dark


def test_the_data_of_every_figure_can_be_downloaded(pages: dict[str, Path], chromium: Browser) -> None:
    chromium.open(pages["images"], 1280)
    links = chromium.evaluate("[...document.querySelectorAll('a[download]')].map(a => [a.download, a.href])")
    assert [name for name, _ in links] == chromium.evaluate(
        "[...document.querySelectorAll('figure')].map(figure => figure.id + '.csv')"
    )
    first = chromium.evaluate("fetch(document.querySelector('a[download]').href).then(response => response.text())")
    assert first.startswith("level,rank,code,hits\n0,1,")


def test_printing_uses_light_colours_and_hides_downloads(pages: dict[str, Path], chromium: Browser) -> None:
    chromium.open(pages["images"], 1280, dark=True)
    chromium.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.evaluate("getComputedStyle(document.querySelector('.download')).display") == "none"
    assert len(chromium.call("Page.printToPDF")["data"]) > 10_000
    chromium.call("Emulation.setEmulatedMedia", media="")
