"""Random changes to the text of a config: flipped, removed and inserted bytes, moved lines."""

from collections.abc import Callable
from random import Random

from checks.mutant_values import FRAGMENTS


def _flip(content: bytes, random: Random) -> bytes:
    """Flip one to three bits."""
    changed = bytearray(content or b"a")
    for _ in range(random.randint(1, 3)):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _insert(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.choice(FRAGMENTS) + content[at:]


def _cut(content: bytes, random: Random) -> bytes:
    """Remove at most 20 bytes."""
    start, stop = sorted(random.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + content[min(stop, start + 20) :]


def _lines(content: bytes, random: Random) -> bytes:
    """Drop, duplicate, swap, indent or dedent a line."""
    lines = content.split(b"\n")
    at, other = random.randrange(len(lines)), random.randrange(len(lines))
    match random.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(other, lines[at])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = b" " * random.randint(1, 4) + lines[at]
        case _:
            lines[at] = lines[at].removeprefix(b"  ")
    return b"\n".join(lines)


# One is drawn uniformly, so a mutation listed several times is more likely.
TEXT_MUTATIONS: list[Callable[[bytes, Random], bytes]] = [_flip, _flip, _insert, _cut, _lines, _lines]
