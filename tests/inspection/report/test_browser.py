"""Pages in a real browser: nothing asked for, nothing complained of, nothing empty, nothing wider than the screen."""

from pathlib import Path

import pytest

from tests.inspection.report.browser import CHROMIUM, Browser, browser

# Of each drawing: its name, whether it takes room, and how many shapes it has; of each image, whether it has pixels.
_LOOK = """[...document.querySelectorAll('svg, img')].map(element => {
    const box = element.getBoundingClientRect();
    const within = element.tagName === 'IMG' ? element.naturalWidth : element.querySelectorAll('path, image').length;
    return [element.getAttribute('aria-label') || element.alt, box.width > 50 && box.height > 20, within];
})"""


@pytest.fixture(scope="module")
def chromium() -> Browser:  # type: ignore[misc]
    if not CHROMIUM:
        pytest.skip("there is no Chromium on this machine")
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("kind", ["images", "tiles", "sequences", "vectors", "ids", "several"])
def test_a_page_is_whole(kind: str, pages: dict[str, Path], chromium: Browser) -> None:
    for width, dark in ((1280, False), (390, True)):
        chromium.open(pages[kind], width, dark=dark)
        assert chromium.requests() == []
        assert chromium.complaints() == []
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        pictures = chromium.evaluate(_LOOK)
        assert len(pictures) >= 2
        for name, has_room, shapes in pictures:
            assert has_room, name
            assert shapes > 1, name
        ground = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")


def test_text_in_drawings_follows_the_page(pages: dict[str, Path], chromium: Browser) -> None:
    colours = "[...new Set([...document.querySelectorAll('svg text')].map(text => getComputedStyle(text).fill))]"
    chromium.open(pages["ids"], 1280)
    light = chromium.evaluate(colours)
    chromium.open(pages["ids"], 1280, dark=True)
    dark = chromium.evaluate(colours)
    assert "rgb(28, 33, 40)" in light
    assert "rgb(227, 230, 235)" in dark
    assert "rgb(28, 33, 40)" not in dark
    assert "rgb(0, 0, 0)" not in dark


def test_numbers_can_be_saved(pages: dict[str, Path], chromium: Browser) -> None:
    chromium.open(pages["images"], 1280)
    links = chromium.evaluate("[...document.querySelectorAll('a[download]')].map(a => [a.download, a.href])")
    assert [name for name, _ in links] == chromium.evaluate(
        "[...document.querySelectorAll('figure')].map(figure => figure.id + '.csv')"
    )
    first = chromium.evaluate("fetch(document.querySelector('a[download]').href).then(told => told.text())")
    assert first.startswith("level,rank,code,hits\n0,1,")


def test_it_prints(pages: dict[str, Path], chromium: Browser) -> None:
    chromium.open(pages["images"], 1280, dark=True)
    chromium.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert chromium.evaluate("getComputedStyle(document.querySelector('.download')).display") == "none"
    assert len(chromium.call("Page.printToPDF")["data"]) > 10_000
    chromium.call("Emulation.setEmulatedMedia", media="")
