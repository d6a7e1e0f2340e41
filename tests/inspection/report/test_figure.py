"""The numbers behind a figure."""

import base64
import csv

from vqtool.inspection.report.figure import Table


def test_numbers_come_back_from_the_link() -> None:
    table = Table(["code", "na,me"], [(1, 'a "b"'), (2, 0.123456789), (3, None)])
    head, _, body = table.uri.partition(",")
    assert head == "data:text/csv;charset=utf-8;base64"
    rows = list(csv.reader(base64.b64decode(body).decode().splitlines()))
    assert rows == [["code", "na,me"], ["1", 'a "b"'], ["2", "0.123457"], ["3", ""]]


def test_a_table_is_readable() -> None:
    assert Table(["n", "x"], [(12_345, 0.5), ("a", 2.0)]).formatted == [["12,345", "0.500"], ["a", "2.000"]]
