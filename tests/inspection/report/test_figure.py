"""SVG and PNG markup, and the data behind a figure."""

import base64
import csv
import io
import re
from xml.etree import ElementTree

import numpy as np
from matplotlib.image import imread

from vqtool.inspection.report.figure import Table, png_element, svg_drawing


def draw(name: str) -> str:
    with svg_drawing(name, "a line") as drawing:
        drawing.ax.plot([0, 1], [0, 1])
        drawing.ax.imshow(np.eye(3), extent=(0, 1, 0, 1))
        drawing.ax.set_title("$x$ & <b>")
    return drawing.svg


def test_equal_drawings_give_equal_markup() -> None:
    assert draw("one") == draw("one")


def test_drawings_with_different_names_have_no_common_element_id() -> None:
    first, second = (set(re.findall(r' id="([^"]+)"', draw(name))) for name in ("one", "two"))
    assert first
    assert not first & second


def test_svg_uses_the_text_colour_of_the_page_and_no_background() -> None:
    svg = draw("one")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#ffffff" not in svg
    assert "http" not in svg.replace("data:", "")


def test_svg_text_is_escaped_and_not_parsed_as_mathematics() -> None:
    root = ElementTree.fromstring(draw("one"))
    assert root.attrib["aria-label"] == "a line"
    assert "width" not in root.attrib
    assert "$x$ & <b>" in "".join(root.itertext())


def test_png_element_contains_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4)) / 255
    element = png_element(pixels, "noise", 100)
    assert element == png_element(pixels, "noise", 100)
    data = re.search(r"base64,([^\"]+)", element)
    assert data
    assert np.allclose(imread(io.BytesIO(base64.b64decode(data[1])), format="png"), pixels, atol=1e-6)


def test_table_uri_contains_the_csv() -> None:
    table = Table(["code", "na,me"], [(1, 'a "b"'), (2, 0.123456789), (3, None)])
    head, _, body = table.uri.partition(",")
    assert head == "data:text/csv;charset=utf-8;base64"
    rows = list(csv.reader(base64.b64decode(body).decode().splitlines()))
    assert rows == [["code", "na,me"], ["1", 'a "b"'], ["2", "0.123457"], ["3", ""]]


def test_table_cells_are_formatted() -> None:
    assert Table(["n", "x"], [(12_345, 0.5), ("a", 2.0)]).formatted == [["12,345", "0.500"], ["a", "2.000"]]
