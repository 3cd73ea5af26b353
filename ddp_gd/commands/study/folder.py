"""The folder that a study keeps its records in."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ddp_gd.commands.study.trials import Result, Trial
from ddp_gd.errors import ConfigError, DataError
from ddp_gd.files import write_json


class StudyFolder:
    """The records of a study, one file for each training.

    Args:
        path: a new or empty folder, or one that a study has left.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self._setting = self.path / "setting.json"

    def require_same(self, common: Mapping[str, Any]) -> None:
        """Refuse a folder that holds anything but trainings of this setting.

        Raises:
            ConfigError: it does; nothing has been written.
            DataError: a record in it is damaged.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--out {self.path} is a file; give a folder.")
        if not self._setting.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise ConfigError(
                    f"--out {self.path} holds something that is no study; give a new folder."
                )
            return
        before = self._read(self._setting)
        different = [
            f"{name} was {before[name]!r} and is {value!r}"
            for name, value in common.items()
            if name in before and before[name] != value
        ]
        if different:
            raise ConfigError(
                f"--out {self.path} holds trainings that can't be compared with these: "
                f"{'; '.join(different)}. Give another folder, or the same setting."
            )

    def begin(self, common: Mapping[str, Any]) -> None:
        """Note the setting, or refuse it as `require_same` does."""
        self.require_same(common)
        try:
            (self.path / "records").mkdir(parents=True, exist_ok=True)
            write_json(self._setting, common)
        except OSError as error:
            raise self._unwritable(error) from error

    def missing(self, wanted: Iterable[Trial]) -> list[Trial]:
        """Tell which trainings have no record yet."""
        return [trial for trial in wanted if not self._path(trial).exists()]

    def write(self, result: Result) -> None:
        """Keep a result, whole or not at all."""
        try:
            write_json(self._path(result.trial), dataclasses.asdict(result))
        except OSError as error:
            raise self._unwritable(error) from error

    def read(self, trial: Trial) -> Result:
        """Read a result that was kept.

        Raises:
            DataError: its record is damaged.
        """
        path = self._path(trial)
        record = self._read(path)
        try:
            result = Result(**{**record, "trial": Trial(**record["trial"])})
            for numbers in (result.loss, result.val_loss, result.seconds):
                numbers[:] = map(float, numbers)
            sound = result.trial == trial and result.rows > 0 and result.updates > 0
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(path, repr(error)) from error
        if not sound:
            raise self._damaged(path, f"it is of {result.trial}")
        return result

    def _path(self, trial: Trial) -> Path:
        return self.path / "records" / f"{trial.name}.json"

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(path, str(error)) from error
        if not isinstance(content, dict):
            raise self._damaged(path, f"it holds a {type(content).__name__}")
        return content

    def _damaged(self, path: Path, why: str) -> DataError:
        remedy = "Give another --out" if path == self._setting else "Remove it to train that again"
        return DataError(f"{path} is damaged: {why}. {remedy}.")

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"--out {self.path} can't be written ({error}): make room there, or give another."
        )
