"""Are numbers equal but for rounding?"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ModelError

_Found = TypeVar("_Found")

# Weights are moved by so many: more than pieces differ by, so that as many numbers cross a kink.
ROUNDINGS = 32
TO_THE_SIDE = 2.0**-8  # weights are moved by this part, to look once more
_ATTEMPTS = 3

# A number of a few roundings may be off by more in pieces, but not by this much more.
_TIMES_ROUNDING = 20


def close(
    found: Any, wanted: Any, moved: Any, tolerance: float = 2.0**-12, scale: float | None = None
) -> bool:
    """Whether numbers are equal but for rounding; where they are numbers.

    Args:
        found: of pieces.
        wanted: of the whole.
        moved: of the whole, with weights moved by about as much as rounding moves. Where that
            changes more than the tolerance, so may pieces.
        tolerance: relative to `scale`.
        scale: of the numbers; the largest wanted one by default.
    """
    found, wanted, moved = (np.asarray(a, np.float64) for a in (found, wanted, moved))
    if not np.isfinite(wanted).all():
        return True  # the first step will say so
    if scale is None:
        scale = float(np.abs(wanted).max(initial=0))
    rounding = np.nan_to_num(np.abs(moved - wanted)).max(initial=0)
    most = max(tolerance * max(scale, 1e-6), _TIMES_ROUNDING * rounding)
    return bool(np.abs(found - wanted).max(initial=0) <= most)


def accepted(communicator: Communicator, attempt: Callable[[int], _Found]) -> _Found:
    """What `attempt(0)` finds, or the next one where some worker refuses the model. Collective.

    Rounding may carry a number over a step (the kink of a ReLU, the class that is counted), and be
    far from what it was. What is wrong is so with weights a little to the side, too, which each
    attempt but the first shall have.

    Raises:
        ModelError: of the last attempt, on every worker.
    """
    for number in range(_ATTEMPTS):
        refusal = None
        try:
            found = attempt(number)
        except ModelError as error:
            refusal = error
        # Looks are collective, and processors of other kinds may see another rounding.
        if not agree.any_worker(communicator, refusal is not None):
            return found
    raise refusal or ModelError(
        "Another worker finds that what shares compute of the model isn't the whole, and says why."
    )


def factors(shape: Sequence[int], part: float, seed: int = 0) -> np.ndarray:
    """What moves each weight up or down by a part of it, float32."""
    up = np.random.default_rng(seed).integers(0, 2, shape, np.int8)
    return np.float32(1 - part) + np.float32(2 * part) * up


def few(values: Any) -> str:
    """The first numbers of an array."""
    flat = np.asarray(values).reshape(-1)
    text = ", ".join(f"{value:.6g}" for value in flat[:3].astype(np.float64))
    return f"[{text}, ...]" if flat.size > 3 else (f"[{text}]" if flat.size > 1 else text)
