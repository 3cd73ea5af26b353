"""Arguments that a shell, or a string built for one, would change."""

from __future__ import annotations

import random

_WORDS = (
    *("a b", " ", "", "\t", "it's", '"', "'", "\\", "\\n", "two\nlines", "\n", "`id`", "$(id)"),
    *("$HOME", "${IFS}", "*", "?", "[a-z]", "~", "~root", "{a,b}", ";", "&", "&&", "|", ">x", "<x"),
    *("#", "!", "!!", "%s", "%n", "--", "-", "-np", "--lr=1e-3", "--launcher", "=", "a=b", "x\r"),
    *("\u00fc", "\u6570\u636e", "\U0001f600", "e\u0301", "\u2028", "\x1b[0m", "\x7f", "-x PATH"),
)


def hostile_arguments(count: int = 1000) -> list[str]:
    """The same `count` arguments every time: the words above, then random joins of them."""
    draw = random.Random(7)
    joined = ["".join(draw.choices(_WORDS, k=draw.randint(2, 5))) for _ in range(count)]
    return [*_WORDS, *joined][:count]
