"""Values as one harmless line of text.

What stands in an attribute was written by anybody. It is data: it may say what it likes, in its own line, at a bounded
length. It cannot end the line, and lines are what the structure of a prompt is made of.
"""

from __future__ import annotations

import unicodedata

_SPACES = frozenset({"Cc", "Zl", "Zp", "Zs"})
_NOTHING = frozenset({"Cf", "Cs", "Co", "Cn"})


def clean(value: object, max_chars: int) -> str:
    """Return the value as one line of at most `max_chars` characters.

    Line breaks, control characters and runs of blanks become one blank. What has no appearance (joiners, marks of
    direction, tags, lone surrogates, unassigned characters) is left out.
    """
    text = str(value)[: 8 * max_chars]
    if not text.isprintable():
        text = "".join(_plain(character) for character in text)
    return " ".join(text.split())[:max_chars].rstrip()


def _plain(character: str) -> str:
    category = unicodedata.category(character)
    if category in _SPACES:
        return " "
    return "" if category in _NOTHING else character
