"""Tests of the commands."""


def mentions(text: str, fragments: str) -> bool:
    """Return whether a text contains fragments, which are separated by ` ... `, in this order."""
    start = 0
    for fragment in fragments.split(" ... "):
        position = text.find(fragment, start)
        if position < 0:
            return False
        start = position + len(fragment)
    return True
