"""Are numbers equal but for rounding?"""

from typing import Any

import numpy as np

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


def few(values: Any) -> str:
    """The first numbers of an array."""
    flat = np.asarray(values).reshape(-1)
    text = ", ".join(f"{value:.6g}" for value in flat[:3].astype(np.float64))
    return f"[{text}, ...]" if flat.size > 3 else (f"[{text}]" if flat.size > 1 else text)
