"""Markup from matplotlib."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
from matplotlib.image import imread

from vqtool.inspection.report.drawing import drawing, png


def draw(name: str) -> str:
    with drawing(name, "a line") as made:
        made.ax.plot([0, 1], [0, 1])
        made.ax.imshow(np.eye(3), extent=(0, 1, 0, 1))
        made.ax.set_title("$x$ & <b>")
    return made.svg


def test_the_same_drawing_is_the_same_markup() -> None:
    assert draw("one") == draw("one")


def test_two_drawings_share_no_id() -> None:
    first, second = (set(re.findall(r' id="([^"]+)"', draw(name))) for name in ("one", "two"))
    assert first
    assert not first & second


def test_it_takes_the_pages_colour_and_has_no_ground() -> None:
    svg = draw("one")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#ffffff" not in svg
    assert "http" not in svg.replace("data:", "")


def test_text_is_escaped_and_no_formula() -> None:
    root = ElementTree.fromstring(draw("one"))
    assert root.attrib["aria-label"] == "a line"
    assert "width" not in root.attrib
    assert "$x$ & <b>" in "".join(root.itertext())


def test_pixels_come_back_from_an_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4)) / 255
    element = png(pixels, "noise", 100)
    assert element == png(pixels, "noise", 100)
    data = re.search(r"base64,([^\"]+)", element)
    assert data
    assert np.allclose(imread(io.BytesIO(base64.b64decode(data[1])), format="png"), pixels, atol=1e-6)
