"""When `fit` saves a training, and where: what users say."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddp_gd.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When `fit` saves all that a training needs to go on, and where.

    Without `every_steps` and `every_seconds` it saves at the end of every epoch. The end of the
    training is always saved.

    Attributes:
        directory: for this training alone; made when there is something to save.
        every_steps: save after every so many updates, counted from the first epoch's first.
        every_seconds: save when so much time has passed, at the end of a step.
        keep: how many checkpoints to keep, the newest ones.
        resume: go on from the newest one, at any number of workers; begin if there is none. Of a
            generator or a tf.data.Dataset the data are read again up to the place; where they are
            not what they were (a shuffle without a seed), True refuses to go on, and `"new order"`
            goes on with the beginning of that epoch, in the order that there is now.
        about: what else each file shall hold, by name: arrays, and what JSON can hold. For people
            and other programs; the training itself never looks at it.

    Raises:
        ConfigError: a value that can't be used.
    """

    directory: str | Path
    every_steps: int | None = None
    every_seconds: float | None = None
    keep: int = 3
    resume: bool | Literal["new order"] = False
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep"):
            value = getattr(self, name)
            if value is None and name == "every_steps":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ConfigError(f"Checkpoint({name}={value!r}) must be a whole number above 0.")
        if self.resume not in (True, False, "new order"):
            raise ConfigError(
                f"Checkpoint(resume={self.resume!r}) must be True, False or 'new order'."
            )
        seconds = self.every_seconds
        if seconds is not None and not (
            isinstance(seconds, (int, float)) and math.isfinite(seconds) and seconds > 0
        ):
            raise ConfigError(f"Checkpoint(every_seconds={seconds!r}) must be a number above 0.")
