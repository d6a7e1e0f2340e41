"""What a file calls itself can be shown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtool.runtime.terminal import escape_control, escape_surrogates


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("C:\\new folder/naïve 名前 🎲.npy", "C:\\new folder/naïve 名前 🎲.npy"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\u202egnp.exe\ufeff", r"\u202egnp.exe\ufeff"),
        ("\udcff\x9b", r"\udcff\x9b"),
    ],
)
def test_only_what_steers_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert escape_control(text) == shown


@given(text=st.text())
@settings(max_examples=100, deadline=None, database=None, derandomize=True)
def test_what_comes_out_is_printable_and_stays_as_it_is(text: str) -> None:
    assert escape_control(text).isprintable()
    assert escape_control(escape_control(text)) == escape_control(text)


def test_bytes_that_are_no_text_become_escapes_and_all_else_stays() -> None:
    assert escape_surrogates("a\udcff\n名.npy") == "a\\udcff\n名.npy"
