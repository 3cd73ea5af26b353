"""The look of all pictures: colours and marks that colour-blind eyes tell apart, in print too."""

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), dark ones first.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def colour(number: int) -> str:
    """The colour of curve `number`, from 0; after the last one the first comes again."""
    return COLOURS[number % len(COLOURS)]


def marker(number: int) -> str:
    """The mark of curve `number`, from 0."""
    return MARKERS[number % len(MARKERS)]


def new_figure(width: float = 6.4, height: float = 4.0) -> Figure:
    """An empty figure of so many inches, which lays itself out."""
    return Figure(figsize=(width, height), layout="constrained")


def finish(axes: Axes, x: str, y: str) -> None:
    """Label the axes, and draw a faint grid."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)


def save(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write the picture; the suffix of `path` says in which format."""
    figure.savefig(path, dpi=dpi)


def as_svg(figure: Figure) -> str:
    """The picture as SVG: text drawn as shapes, so that it needs no font, and no date in it."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ddp_gd"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def plain(text: str) -> str:
    """A name that a user chose, as a picture can show it: not a formula, no letters it lacks."""
    return text.encode("ascii", "replace").decode().replace("$", r"\$")
