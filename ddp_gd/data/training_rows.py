"""What the workers measure of the training rows together."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ddp_gd.batching.plan import block
from ddp_gd.batching.views import Reader
from ddp_gd.comm.base import Communicator
from ddp_gd.data.dataset import Dataset
from ddp_gd.data.normalizer import Moments, Normalizer, measure, pieces, some_value, together
from ddp_gd.data.preprocessing import Preprocessing


class TrainingRows:
    """The training rows of a data set, measured by all workers together.

    Every worker measures consecutive pieces of the rows; what they found is put together in an
    order that depends on the number of pieces alone. So the results have the same bits at any
    number of workers. `rows` gives the numbers in the data set of training rows 0 to `count - 1`.
    """

    def __init__(
        self,
        communicator: Communicator,
        dataset: Dataset,
        count: int,
        rows: Callable[[np.ndarray], np.ndarray],
    ):
        self._communicator = communicator
        self._dataset = dataset
        self._count = count
        self._rows = rows

    def preprocessing(self, normalize: bool) -> Preprocessing:
        """How this data set's features become a model's input."""
        dataset = self._dataset
        array = dataset.features
        categories = dataset.categories
        places = [p for p in range(array.shape[-1]) if p not in categories]
        names = [dataset.feature_names[p] for p in places]
        normalizer = None
        if places and normalize:
            normalizer = self.normalizer(array, places if categories else None, names)
        occurring: dict[int, np.ndarray] = {}
        if categories:
            widths = {place: len(texts) for place, texts in categories.items()}
            occurring = self._occurring(array, widths)
        missing = dataset.missing and normalizer is not None
        return Preprocessing.of(dataset.feature_names, normalizer, missing, categories, occurring)

    def normalizer(
        self, array: np.ndarray, places: Sequence[int] | None = None, names: Sequence[str] = ()
    ) -> Normalizer:
        """Measure all columns of an array of the data set, or those in some places.

        Raises:
            DataError: a column can't be measured; it has one of the names.
        """
        take = self._reader(array, places)
        shift = some_value(take(slice(0, min(1000, self._count))))
        row_values = int(np.prod(array.shape[1:]))
        mine = [measure(take, p, row_values, shift) for p in self._own_pieces(row_values)]
        # (pieces, 3, columns)
        found = np.array([[m.count, m.mean, m.squares] for m in mine]).reshape(-1, 3, len(shift))
        found = self._gathered(found)
        return Normalizer.of(together([Moments(*part) for part in found]), shift, names)

    def _occurring(self, array: np.ndarray, widths: dict[int, int]) -> dict[int, np.ndarray]:
        """Which categories occur in the training rows."""
        take = self._reader(array, None)
        seen = {place: np.zeros(width, np.int64) for place, width in widths.items()}
        for piece in self._own_pieces(array.shape[1]):
            values = take(piece)
            for place, found in seen.items():
                found[np.unique(values[:, place]).astype(np.int64)] = 1
        flat = np.concatenate(list(seen.values()))
        everyone = self._gathered(flat[None]).max(axis=0)
        ends = np.cumsum([len(found) for found in seen.values()])
        return dict(zip(seen, np.split(everyone, ends[:-1]), strict=True))

    def _own_pieces(self, row_values: int) -> list[slice]:
        """Those of the training rows' pieces that this worker looks at."""
        cut = pieces(self._count, row_values)
        start, stop = block(len(cut), self._communicator.size, self._communicator.rank)
        return cut[start:stop]

    def _reader(
        self, array: np.ndarray, places: Sequence[int] | None
    ) -> Callable[[slice], np.ndarray]:
        reader = Reader(array)

        def take(piece: slice) -> np.ndarray:
            taken = reader.take(self._rows(np.arange(piece.start, piece.stop)))
            return taken if places is None else taken[:, list(places)]

        return take

    def _gathered(self, array: Any) -> np.ndarray:
        """Every worker's rows, one after the other."""
        if self._communicator.size == 1:
            return array
        result: np.ndarray = self._communicator.allgather(tf.constant(array)).numpy()
        return result
