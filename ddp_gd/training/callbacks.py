"""The callbacks of one worker: all of them see the same logs, and only rank 0's write or print."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from ddp_gd import settings
from ddp_gd.batching.source import Source
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ConfigError
from ddp_gd.steps import keras_private
from ddp_gd.training.loop import Instrument, Loop, open_loop
from ddp_gd.training.summaries import Summaries
from ddp_gd.training.trace import Tracer

# These write files or send messages: once is enough. Every other callback runs on every worker.
_RANK_0_CALLBACKS = tuple(
    getattr(keras.callbacks, name)
    for name in (
        "BackupAndRestore",
        "CSVLogger",
        "ModelCheckpoint",
        "OrbaxCheckpoint",
        "ProgbarLogger",
        "RemoteMonitor",
        "TensorBoard",
    )
    if hasattr(keras.callbacks, name)
)
_SAVING = (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore)
# By what is made: a training may validate.
_BATCH_HOOKS = {
    "train": ("batch", "train_batch", "test_batch"),
    "test": ("test_batch",),
    "predict": ("predict_batch",),
}


class Hooks:
    """The callbacks of one worker.

    Attributes:
        callbacks: Keras's list; what writes files or prints is in rank 0's only.
        every: after so many steps one of them wants to be called, as many as `compile` was told to
            execute at once; 0 where none does.
        own: the user's, all of them, in the order given.
        summaries: where `tf.summary` in the model writes to.
        measure: whether graphs are to be traced for what measures them, or writes of them, on some
            worker.
    """

    def __init__(
        self,
        communicator: Communicator,
        model: keras.Model,
        callbacks: Any,
        verbose: int | str,
        epochs: int,
        steps: int | None,
        verb: Literal["train", "test", "predict"] = "test",
    ):
        training = verb == "train"
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        own = keras.tree.flatten(callbacks) if callbacks else []
        self.own = list(own)
        self._at_start: list[dict[str, Any]] = [{} for _ in own]
        everywhere = [c for c in own if not isinstance(c, _RANK_0_CALLBACKS)]
        verbose = _verbosity(verbose, communicator)
        self._lines = EpochLines()
        if verbose == 2 and training:
            own.append(self._lines)
        if training and (folder := settings.trace_folder()) is not None:
            own.append(Tracer(folder))
        here = own if communicator.rank == 0 else everywhere
        self.summaries = Summaries(here)
        self.callbacks = keras.callbacks.CallbackList(
            [*here, self.summaries] if self.summaries.wanted else here,
            add_history=training,
            add_progbar=verbose == 1,
            verbose=verbose,
            epochs=epochs,
            steps=steps,
            model=model,
        )
        self._communicator = communicator
        self._model = model
        # A callback that looks at every step may also stop the training there, on any worker.
        self._may_stop = agree.any_worker(communicator, _has_batch_hooks(everywhere, verb))
        looks = self._may_stop or _has_batch_hooks(self.callbacks.callbacks, verb)
        self.every = int(model.steps_per_execution) if looks else 0
        instruments = any(isinstance(c, Instrument) for c in self.callbacks.callbacks)
        self.measure = agree.any_worker(communicator, instruments or self.summaries.wanted)

    def open_loop(self, source: Source, stop_on_nan: bool, *, training: bool) -> Loop:
        """Compile the model's steps for these rows, summaries included, see `loop.open_loop`."""
        with self.summaries.tracing(training):
            return open_loop(
                self._communicator,
                self._model,
                source,
                stop_on_nan,
                training=training,
                fresh=self.measure,
            )

    def attach(self, loop: Loop) -> None:
        """Show the callbacks that are instruments the loop that they are about to measure."""
        for callback in self.callbacks.callbacks:
            if isinstance(callback, Instrument):
                callback.attach(self._communicator, loop)

    def remember(self) -> None:
        """Note what the callbacks' attributes are when the training begins; see `states`."""
        self._at_start = [_attributes(callback) for callback in self.own]

    def states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What each of the user's callbacks remembers: its class, and the attributes it changed.

        Only numbers, words and lists of arrays: EarlyStopping's best value, its patience used up,
        its best weights. Keras's callbacks can't be asked for more.
        """
        for callback, before in zip(self.own, self._at_start, strict=True):
            now = _attributes(callback)
            changed = {n: v for n, v in now.items() if n not in before or before[n] is not v}
            yield type(callback).__name__, changed

    def restore(self, states: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Let the user's callbacks remember what `states` gave: the first of a class, and so on.

        Others may have been added or left out since.
        """
        left = list(states)
        for callback in self.own:
            kind = type(callback).__name__
            found = next((entry for entry in left if entry[0] == kind), None)
            if found is None:
                continue
            left.remove(found)
            # Where they were read from: a class may have something else of that name.
            vars(callback).update(
                {
                    name: list(value) if isinstance(value, list) else value
                    for name, value in found[1].items()
                    if not _is_derived(callback, name)
                }
            )

    def want_to_stop(self, flag: str = "stop_training") -> bool:
        """Tell, after a step, whether some worker's callback set this attribute of the model."""
        if not self._may_stop:
            return False
        return agree.any_worker(self._communicator, bool(getattr(self._model, flag)))

    def deal_with_nan(self) -> bool:
        """Tell whether some worker has a callback that sees to a loss which is no number."""
        own = any(isinstance(callback, keras.callbacks.TerminateOnNaN) for callback in self.own)
        return agree.any_worker(self._communicator, own)

    def note_steps(self, steps: int) -> None:
        """So many steps the epoch has had that is about to end."""
        self._lines.steps = steps


def _attributes(callback: Any) -> dict[str, Any]:
    plain = (bool, int, float, str, np.generic, type(None))
    return {
        name: value
        for name, value in vars(callback).items()
        if not _is_derived(callback, name)
        and (
            isinstance(value, plain)
            or (isinstance(value, list) and value and all(isinstance(v, np.ndarray) for v in value))
        )
    }


def _is_derived(callback: Any, name: str) -> bool:
    """Whether a callback makes an attribute itself of what it was made with.

    Those that monitor a metric, once in each process: they turn the sign of `min_delta` when they
    first find out whether less is better.
    """
    return name == "min_delta" and hasattr(callback, "monitor_op")


def _has_batch_hooks(callbacks: list[Any], verb: str) -> bool:
    # Keras marks the hooks that a callback doesn't override.
    return any(
        not keras_private.is_default(getattr(callback, f"on_{kind}_{moment}"))
        for callback in callbacks
        if not _is_content_with_some(callback)
        for kind in _BATCH_HOOKS[verb]
        for moment in ("begin", "end")
    )


def _is_content_with_some(callback: Any) -> bool:
    """Tell whether a callback's hooks for batches lose nothing if not every batch calls them.

    The progress bar shows the last of several. Those that save, save after epochs, and TensorBoard
    writes nothing about batches, unless they were told to.
    """
    if type(callback) in _SAVING:
        return callback.save_freq == "epoch"
    if type(callback) is keras.callbacks.TensorBoard:
        epochs_only = callback.update_freq == "epoch" and not callback.write_steps_per_second
        return epochs_only and not keras_private.profiles(callback)
    return isinstance(callback, (keras.callbacks.ProgbarLogger, Summaries))


def _verbosity(verbose: int | str, communicator: Communicator) -> int:
    if verbose not in (0, 1, 2, "auto"):
        raise ConfigError(f"verbose={verbose!r} must be 0, 1, 2 or 'auto'.")
    if communicator.rank > 0:
        return 0
    if verbose == "auto":
        # mpirun gives its processes a terminal of their own, whatever stands behind it.
        return 1 if communicator.size == 1 and sys.stdout.isatty() else 2
    if verbose == 1 and not (sys.stdout.isatty() or "ipykernel" in sys.modules):
        return 2  # a file of control characters helps nobody
    return int(verbose)


class EpochLines(keras.callbacks.Callback):
    """Prints every epoch's logs, with digits enough to compare two runs by.

    Attributes:
        steps: of the epoch.
    """

    steps = 1

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Print the line."""
        milliseconds = (time.perf_counter() - self._began) * 1000 / max(self.steps, 1)
        # F1Score, for one, has a number for each class.
        values = [
            f"{name}: {value}" if np.ndim(value) else f"{name}: {value:.7g}"
            for name, value in (logs or {}).items()
        ]
        parts = [
            f"Epoch {epoch + 1}/{self.params['epochs']}",
            f"{milliseconds:.3g} ms/step",
            *values,
        ]
        print(" - ".join(parts), flush=True)
