"""Saves a training while it goes on."""

import json
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ddp_gd.batching.source import Source
from ddp_gd.job import bitwise
from ddp_gd.steps.keras_private import global_seed
from ddp_gd.training import replicas
from ddp_gd.training.callbacks import Hooks
from ddp_gd.training.saving.checkpoint import Checkpoint
from ddp_gd.training.saving.checkpoint_files import Folder
from ddp_gd.training.saving.snapshot import _FORMAT, Position, _encoded, _stored, _variables


class Saver:
    """Saves the training on rank 0: copies the values, then writes them while training goes on.

    No other worker waits: all have the same values, so rank 0 alone needs to stop for the copy.

    Args:
        checkpoint: when, and where.
        model: compiled and built.
        hooks: the model's callbacks.
        facts: what the training was given.
        source: of the training's mini-batches.
        only_finite: refuse to save weights that are NaN or infinite.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: keras.Model,
        hooks: Hooks,
        facts: Mapping[str, str],
        source: Source,
        only_finite: bool,
    ):
        self._only_finite = only_finite
        self._checkpoint = checkpoint
        self._folder = Folder(checkpoint.directory)
        self._model = model
        self._hooks = hooks
        bits = bitwise.facts()
        self._fixed = {"format": _FORMAT, "facts": facts, "bits": bits, "seed": source.seed}
        self._source = source
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ddp_gd_checkpoint")
        self._writing: Future[Path] | None = None
        self._last = time.monotonic()

    def save(self, position: Position, logs: Mapping[str, Any], stopped: bool) -> Path:
        """Save now, and return the file when it is on the disk."""
        self._save(position, logs, stopped)
        assert self._writing is not None
        return self._writing.result()

    def step_ended(self, position: Position, logs: Mapping[str, Any]) -> None:
        """Save if it is time to, at `position`."""
        every_steps, every_seconds = self._checkpoint.every_steps, self._checkpoint.every_seconds
        by_steps = every_steps is not None and position.updates % every_steps == 0
        late = every_seconds is not None and time.monotonic() - self._last >= every_seconds
        if by_steps or (late and (self._writing is None or self._writing.done())):
            self._save(position, logs)

    def epoch_ended(
        self, position: Position, logs: Mapping[str, Any], *, last: bool, stop: bool
    ) -> None:
        """Save what an epoch left.

        Args:
            position: the beginning of the next one.
            logs: its.
            last: whether the training ends with it.
            stop: whether a callback wanted that.
        """
        always = not (self._checkpoint.every_steps or self._checkpoint.every_seconds)
        if always or last:
            self._save(position, logs, stop)
        else:
            self.step_ended(position, logs)
        if last:
            self.finish()

    def finish(self) -> None:
        """Return when the last checkpoint is on the disk.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writing is not None:
            self._writing.result()

    def _save(self, position: Position, logs: Mapping[str, Any], stopped: bool = False) -> None:
        self.finish()
        if self._only_finite:
            replicas.require_finite(self._model, str(position))
        arrays = {}
        with_seed = global_seed() is not None
        for name, variable in _variables(self._model, with_seed).items():
            value = np.asarray(variable.value.numpy())  # a copy
            arrays[name] = value.view(_stored(value.dtype))
        callbacks = []
        for number, (name, state) in enumerate(self._hooks.states()):
            plain = {}
            for attribute, value in state.items():
                if isinstance(value, list):
                    plain[attribute] = {"arrays": len(value)}
                    for i, array in enumerate(value):
                        arrays[f"callback/{number}/{attribute}/{i}"] = np.array(array)
                else:
                    plain[attribute] = _encoded(value)
            callbacks.append((name, plain))
        about = {}
        for name, value in self._checkpoint.about.items():
            if isinstance(value, np.ndarray):
                arrays[f"about/{name}"] = value
            else:
                about[name] = value
        history = self._model.history
        header = self._fixed | {
            "about": about,
            "position": position,
            "mark": self._source.mark(position.step),
            "stopped": stopped,
            "logs": {name: _encoded(value) for name, value in logs.items()},
            "history": {
                "logs": {n: list(map(_encoded, values)) for n, values in history.history.items()},
                "epoch": list(history.epoch),
            },
            "callbacks": callbacks,
        }
        self._last = time.monotonic()
        self._writing = self._writer.submit(
            self._folder.write,
            position.updates,
            arrays,
            json.dumps(header),
            self._checkpoint.keep,
        )
