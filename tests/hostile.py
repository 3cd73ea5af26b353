"""Arguments that a careless script would change on their way, and what they arrive at."""

from __future__ import annotations

import random
from pathlib import Path

import ddp_gd

_PIECES = [
    *" \t\n\r'\"\\$`*?~!#&;|<>(){}[]^%=,:@-",
    "$(id)",
    "`id`",
    "${HOME}",
    "$'\\n'",
    "%s",
    "--",
    "-x",
    "-np",
    "word",
    "é",
    "日本",
    "😀",
    "\x01",
    "\x7f",
    "\u2028",
]


def _arguments(count: int) -> list[str]:
    draw = random.Random(0)
    # Each piece by itself, an empty one, and what the launch scripts themselves understand.
    fixed = ["a b", "", *_PIECES, "--hosts", "--help", "-h", "--dry-run", "--lr=1e-3", "a" * 500]
    mixed = ["".join(draw.choices(_PIECES, k=draw.randint(1, 8))) for _ in range(count)]
    return [*fixed, *mixed][:count]


ARGUMENTS = _arguments(1000)


def in_place_of_training(folder: Path, program: str) -> str:
    """Make a package of which `python -m ddp_gd.train` is this program; return its PYTHONPATH."""
    package = folder / "shadow" / "ddp_gd"
    package.mkdir(parents=True)
    # All else is the package itself.
    real = Path(str(ddp_gd.__file__)).parent
    init = (real / "__init__.py").read_text()
    (package / "__init__.py").write_text(f"{init}\n__path__.append({str(real)!r})\n")
    (package / "train.py").write_text(program)
    return str(package.parent)
