"""How soon an audit finds a core that computes wrong: python -m benchmarks.audit_reach.

Prints docs/audit.md's table, and draws its picture into docs/audit.png. Nothing is trained: these
are the formulas of that page.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

PART = 0.01  # that is audited
PER_SECOND = 800.0  # micro-batches that the whole job computes
WORKERS = (8, 64)
SECONDS = 3600.0


def found(rate: float, per_second: float, part: float = PART, seconds: float = SECONDS) -> float:
    """The probability that a worker which computes wrong is found.

    Args:
        rate: of its results, so many are wrong.
        per_second: micro-batches of its own.
        part: of all micro-batches that is audited.
        seconds: how long it is looked for.
    """
    # Of its own results that part is compared, and it computes as many for others, also compared.
    return -math.expm1(2 * part * per_second * seconds * math.log1p(-rate))


def table() -> str:
    """Markdown, a line for each rate."""
    lines = ["| wrong, one in | 8 workers | 64 workers |", "|---|---|---|"]
    for k in range(1, 8):
        each = [found(10.0**-k, PER_SECOND / workers) for workers in WORKERS]
        lines.append(f"| 10^{k} | " + " | ".join(map(_in_words, each)) + " |")
    return "\n".join(lines)


def draw(path: Path) -> None:
    """The probability by the rate, for each number of workers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    places = [k / 20 for k in range(20, 141)]
    for workers, colour in zip(WORKERS, ("C0", "C1"), strict=True):
        each = PER_SECOND / workers
        values = [found(10.0**-k, each) for k in places]
        axes.plot(places, values, colour, label=f"{workers} workers, {each:g} a second each")
    axes.set_xticks(range(1, 8), [f"$10^{{{k}}}$" for k in range(1, 8)])
    axes.set_xlabel("one of so many micro-batches is wrong")
    axes.set_ylabel("found within an hour")
    axes.legend(title="1 % audited")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _in_words(probability: float) -> str:
    return "certain" if probability > 0.9999 else f"{100 * probability:.3g} %"


def main() -> None:
    """Print and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.audit_reach", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("docs/audit.png"), help="the picture")
    options = parser.parse_args()
    print(table())
    draw(options.out)


if __name__ == "__main__":
    main()
