"""Text from files is safe to print."""

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
def test_only_non_printable_characters_are_escaped(text: str, shown: str) -> None:
    assert escape_control(text) == shown


@given(text=st.text())
@settings(max_examples=100, deadline=None, database=None, derandomize=True)
def test_escaped_text_is_printable_and_not_escaped_again(text: str) -> None:
    assert escape_control(text).isprintable()
    assert escape_control(escape_control(text)) == escape_control(text)


def test_surrogates_become_escapes_and_other_characters_stay() -> None:
    assert escape_surrogates("a\udcff\n名.npy") == "a\\udcff\n名.npy"
