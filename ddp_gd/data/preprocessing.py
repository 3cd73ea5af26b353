"""From a table's numbers and categories to the features that a model is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ddp_gd.data.normalizer import Normalizer


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """How raw features become a model's input; made of the training rows alone.

    Numbers are shifted and scaled; a missing one becomes the mean. A category becomes one feature
    for each text that occurs in the training rows, in alphabetical order: 1 where it is the row's
    text, else 0. A text that doesn't occur there leaves all of them 0. Numbers come first, then
    the categories, each in the order of the columns.

    Attributes:
        names: of the raw columns.
        normalizer: of the columns of numbers; None leaves them as they are.
        missing: whether NaN stands for missing numbers; needs a normalizer.
        texts: for the place of each column of categories: the texts that occur, sorted.
        numbers: likewise, their numbers in the raw data.
    """

    names: tuple[str, ...]
    normalizer: Normalizer | None = None
    missing: bool = False
    texts: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        normalizer: Normalizer | None,
        missing: bool,
        categories: Mapping[int, Sequence[str]],
        occurring: Mapping[int, np.ndarray],
    ) -> Preprocessing:
        """Sort the texts, by place and number, that occur in the training rows."""
        texts, numbers = {}, {}
        for place, all_texts in categories.items():
            where = np.flatnonzero(occurring[place]).tolist()
            found = sorted((all_texts[number], number) for number in where)
            texts[place] = tuple(text for text, _ in found)
            numbers[place] = np.array([number for _, number in found])
        return cls(tuple(names), normalizer, missing, texts, numbers)

    @property
    def number_places(self) -> list[int]:
        """Places of the columns of numbers."""
        return [place for place in range(len(self.names)) if place not in self.texts]

    def transform(self, raw: np.ndarray) -> np.ndarray:
        """Raw rows, shape (rows, ..., columns), to float32 features, computed in float64.

        Without categories the shape stays; with them it is (rows, width).
        """
        if not self.texts:
            return self._scaled(raw)
        groups = [self._scaled(raw[:, self.number_places])] if self.number_places else []
        for place, numbers in self.numbers.items():
            groups.append((raw[:, [place]] == numbers).astype(np.float32))
        return np.concatenate(groups, axis=1)

    def _scaled(self, raw: np.ndarray) -> np.ndarray:
        if self.normalizer is None:
            return raw.astype(np.float32)
        scaled = self.normalizer.transform(raw)
        return np.nan_to_num(scaled, copy=False) if self.missing else scaled
