"""What `load` was asked for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddp_gd.data.csv_files import Kind

KERAS = "keras:"


@dataclass(frozen=True)
class Request:
    """The arguments of `load`, and what is known of the columns already.

    Attributes:
        source: files, folders, or one data set of another kind.
        target: columns to predict, or a file of them.
        features: columns, in this order; None for all but the others named here.
        exclude: columns that are no features, where `features` leaves that open.
        sample_weight: column of each row's weight, or a file of them.
        categorical: columns to take as categories although they hold numbers.
        missing: as in `load`.
        dtype: of a table's features.
        kinds: of some columns, where they are known.
        image_size: height and width of images; None for those of the first one.
        targets_needed: whether there must be something to predict.
    """

    source: tuple[str | Path, ...]
    target: tuple[str, ...] = ()
    features: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    sample_weight: str | None = None
    categorical: tuple[str, ...] = ()
    missing: Literal["error", "drop", "mean"] = "error"
    dtype: str = "float64"
    kinds: tuple[tuple[str, Kind], ...] = ()
    image_size: tuple[int, int] | None = None
    targets_needed: bool = True

    @property
    def name(self) -> str:
        """The source in words."""
        return ", ".join(map(str, self.source))

    @property
    def remedy(self) -> str:
        """What to do about missing cells, for messages."""
        if self.targets_needed:
            return "Fill in, or give missing='drop' or missing='mean'"
        return "Fill in: the model needs all of its features"
