"""The epochs of a training on one worker: steps, validation, saving, leaving when asked to."""

import dataclasses
import signal
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import keras
import numpy as np

from ddp_gd import settings
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import MismatchError
from ddp_gd.job.signals import Interrupts
from ddp_gd.steps import keras_private
from ddp_gd.training import replicas
from ddp_gd.training.callbacks import Hooks
from ddp_gd.training.loop import Loop
from ddp_gd.training.saving.checkpoint import Checkpoint
from ddp_gd.training.saving.saver import Saver
from ddp_gd.training.saving.snapshot import Position, Snapshot


@dataclasses.dataclass
class Epochs:
    """The epochs of one call of `fit`, on one worker."""

    communicator: Communicator
    model: keras.Model
    hooks: Hooks
    loop: Loop
    validation_loop: Loop | None
    validation_freq: int | Iterable[int]
    check_every: int | None
    checkpoint: Checkpoint | None
    saver: Saver | None
    saved: Snapshot | None
    checked: str = "its beginning"
    updates: int = 0

    def run(self, initial_epoch: int, epochs: int) -> None:
        """Train up to epoch `epochs`, from `initial_epoch` or where a checkpoint was saved."""
        with Interrupts(active=self.checkpoint is not None) as self.interrupts:
            self._run(initial_epoch, epochs)

    def _run(self, initial_epoch: int, epochs: int) -> None:
        self.model.stop_training = False
        self.hooks.callbacks.on_train_begin()
        self.hooks.remember()
        # A callback may have restored a state, and with it the epoch to go on with, on rank 0.
        replicas.synchronize(self.communicator, self.model)
        first = agree.from_rank_0(
            self.communicator, keras_private.initial_epoch(self.model) or initial_epoch
        )
        logs: dict[str, Any] = {}
        last = epochs
        if self.saved is None:
            self.loop.reset()
        else:
            self.saved.restore(self.model, self.hooks)
            self.saved = self._in_place(self.saved)
            first, logs = self.saved.position.epoch, self.saved.logs
            if self.saved.stopped and self.saved.position.step == 0:
                last = first  # else the end of that epoch is still to be made
        self.updates = first * (self.loop.steps_per_epoch or 0)
        if self.saved is not None:
            self.updates = self.saved.position.updates - self.saved.position.step
        for epoch in range(first, last):
            logs = self._epoch(epoch)
            stop = agree.any_worker(self.communicator, self.model.stop_training)
            position = Position(epoch + 1, 0, self.updates)
            if self.saver is not None:
                self.saver.epoch_ended(position, logs, last=stop or epoch == last - 1, stop=stop)
            if self.interrupts.active and agree.any_worker(
                self.communicator, self.interrupts.received is not None
            ):
                self._leave(position, logs, stop)
            if stop:
                break
        if epochs > 0:
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
        self.hooks.callbacks.on_train_end(logs)

    def _in_place(self, saved: Snapshot) -> Snapshot:
        """Let the data be where they were; or where a new order begins, if that may be."""
        epoch, step, updates = saved.position
        if self.loop.source.go_to(epoch, step, saved.mark):
            return saved
        if self.checkpoint is None or self.checkpoint.resume != "new order":
            raise MismatchError(
                f"The data before {saved.position} are not those that were read when the "
                "checkpoint was saved: their order is drawn without a seed, or they are others. "
                "Seed what is drawn at random, or go on with the beginning of the epoch in a new "
                "order (Checkpoint(resume='new order'))."
            )
        self.loop.reset()
        if self.communicator.rank == 0:
            warnings.warn(
                f"The data come in another order than before {saved.position}; the training goes "
                f"on with the beginning of epoch {epoch + 1}.",
                stacklevel=4,
            )
        return dataclasses.replace(saved, position=Position(epoch, 0, updates))

    def _epoch(self, epoch: int) -> dict[str, Any]:
        """Train one epoch, or the rest of one that was saved half-way."""
        model, hooks = self.model, self.hooks
        model.reset_metrics()
        hooks.callbacks.on_epoch_begin(epoch)
        position = Position(epoch, 0, self.updates)
        logs: dict[str, Any] = {}
        saved = self.saved
        if saved is not None and epoch == saved.position.epoch and saved.position.step > 0:
            # Once more: the metrics and what callbacks did at the beginning of the epoch.
            saved.restore(model, hooks)
            position, logs = saved.position, _logs(model, self.loop)
        if saved is not None and saved.stopped and position == saved.position:
            model.stop_training = True  # by a callback: no step is left
        else:
            position, logs = self._steps(position, logs)
        hooks.note_steps(position.step)
        self.updates = position.updates
        if self.validation_loop is not None and _is_due(epoch, self.validation_freq):
            logs |= self._validate(self.validation_loop, position, logs)
        hooks.callbacks.on_epoch_end(epoch, logs)
        self._check(f"epoch {epoch + 1}")
        if self.loop.steps.stop_on_nan:
            replicas.require_finite(model, f"epoch {epoch + 1}")
        return logs

    def _steps(self, begin: Position, logs: dict[str, Any]) -> tuple[Position, dict[str, Any]]:
        """Make the steps of an epoch from `begin` on; where it ends, and its logs."""
        position, loop = begin, self.loop
        save_every = self.checkpoint.every_steps if self.checkpoint else None
        pauses = [every for every in (save_every, self.check_every) if every is not None]
        batches = BatchHooks(
            self.hooks.every,
            self.hooks.callbacks.on_train_batch_begin,
            self.hooks.callbacks.on_train_batch_end,
        )
        for first, stop in loop.calls(
            begin.epoch, self.hooks.every, begin.step, self.updates, pauses
        ):
            batches.begin(first)
            stop, asked = loop.run(first, stop, self.interrupts.received is not None)
            logs = _logs(self.model, loop)
            ended = batches.end(stop, logs)
            position = Position(begin.epoch, stop, self.updates + stop)
            if asked:
                self._check(str(position))
                self._leave(position, logs, self.hooks.want_to_stop())
            if ended and self.hooks.want_to_stop():
                break
            if stop == loop.steps_per_epoch:
                break  # the end of the epoch sees to the rest
            if any(position.updates % every == 0 for every in pauses):
                self._check(str(position))  # before it is saved
            if self.saver is not None:
                self.saver.step_ended(position, logs)
        batches.finish()
        loop.end_epoch()
        return position, logs

    def _validate(self, loop: Loop, position: Position, logs: dict[str, Any]) -> dict[str, Any]:
        """The logs of a validation. Asked to stop in it, leave everything as it was before."""
        changed: list[Any] = []
        if self.interrupts.active:
            changed = loop.steps.changed
        before = [variable.value.numpy() for variable in changed]
        what = f"the validation of epoch {position.epoch + 1}"
        validation_logs, asked = evaluation(self.model, loop, self.hooks, what, self.interrupts)
        if asked:
            for variable, value in zip(changed, before, strict=True):
                variable.assign(value)
            self._check(str(position))
            self._leave(position, logs, self.hooks.want_to_stop())
        return {f"val_{name}": value for name, value in validation_logs.items()}

    def _check(self, now: str) -> None:
        """Compare the workers' copies of the model."""
        seed = keras_private.global_seed()
        draws_globally = any(variable is seed for variable in self.loop.steps.changed)
        replicas.check(self.communicator, self.model, draws_globally, self.checked, now)
        self.checked = now

    def _leave(self, position: Position, logs: dict[str, Any], stopped: bool) -> NoReturn:
        """End all workers after the same step, when rank 0 has saved it."""
        self.loop.end_epoch()
        received = self.interrupts.received
        by_hand = agree.any_worker(self.communicator, received == signal.SIGINT)
        if self.saver is not None:
            path = self.saver.save(position, logs, stopped)
            number = received or (signal.SIGINT if by_hand else signal.SIGTERM)
            # SIGUSR1 is what launchers hand on, whatever they were sent.
            by = "as asked" if number == signal.SIGUSR1 else f"by {signal.Signals(number).name}"
            sys.stderr.write(
                f"ddp_gd: stopped {by} after {position}; saved in {path}. {_go_on()}\n"
            )
        self.communicator.barrier()
        if by_hand and self.communicator.size == 1:
            raise KeyboardInterrupt
        sys.exit(128 + (signal.SIGINT if by_hand else signal.SIGTERM))


def _go_on() -> str:
    """Say how to go on: with the command that was typed, if one was."""
    typed = settings.command()
    if not typed:
        return "Go on with Checkpoint(..., resume=True)."
    return f"Go on: {typed}" + " --resume" * ("--resume" not in typed.split())


class BatchHooks:
    """Calls the hooks of batches as Keras does: once for so many steps as are executed at once.

    Args:
        every: so many; 0 where nobody looks at them: then once for every call into TensorFlow.
        on_begin: the hook for the beginning of a batch.
        on_end: that for its end.
    """

    def __init__(self, every: int, on_begin: Callable[..., None], on_end: Callable[..., None]):
        self._every, self._on_begin, self._on_end = every, on_begin, on_end
        self._last: int | None = None  # step of those executed at once, as Keras counts
        self._logs: dict[str, Any] = {}

    def begin(self, first: int) -> None:
        """Step `first` is about to be made."""
        if self._last is None:
            first -= first % max(self._every, 1)
            self._last = first + self._every - 1
            self._on_begin(first)

    def end(self, stop: int, logs: dict[str, Any]) -> bool:
        """The steps before `stop` are made; tell whether the hook was called."""
        self._logs = logs
        if self._every and stop % self._every:
            return False
        self._last = self._last if self._every else stop - 1
        self.finish()
        return True

    def finish(self) -> None:
        """There are no more steps: those at the end may be fewer."""
        if self._last is not None:
            last, self._last = self._last, None
            self._on_end(last, self._logs)


def evaluation(
    model: keras.Model, loop: Loop, hooks: Hooks, what: str, interrupts: Interrupts
) -> tuple[dict[str, Any], bool]:
    """The logs of `what`, and whether some worker was asked to stop in it and it is not all."""
    model.stop_evaluating = False
    hooks.callbacks.on_test_begin()
    model.reset_metrics()
    logs: dict[str, Any] = {}
    loop.reset()
    batches = BatchHooks(
        hooks.every, hooks.callbacks.on_test_batch_begin, hooks.callbacks.on_test_batch_end
    )
    for first, stop in loop.calls(epoch=0, every=hooks.every, what=what):
        batches.begin(first)
        stop, asked = loop.run(first, stop, interrupts.received is not None)
        logs = _logs(model, loop)
        ended = batches.end(stop, logs)
        if asked:
            loop.end_epoch()
            return logs, True
        if ended and hooks.want_to_stop("stop_evaluating"):
            break
    batches.finish()
    loop.end_epoch()
    logs = dict(sorted(logs.items()))  # as Keras has them after an evaluation
    hooks.callbacks.on_test_end(logs)
    return logs, False


def _logs(model: keras.Model, loop: Loop) -> dict[str, Any]:
    """The model's metrics; or what an overridden step returned, if that is something else."""
    found = loop.logs or model.get_metrics_result()
    values = {name: np.asarray(value) for name, value in found.items()}
    # F1Score, for one, has a number for each class.
    return {name: value if value.ndim else float(value) for name, value in values.items()}


def _is_due(epoch: int, validation_freq: int | Iterable[int]) -> bool:
    """Tell whether `epoch`, counted from 0, ends with a validation, as Keras does."""
    if isinstance(validation_freq, (int, np.integer)):
        return (epoch + 1) % validation_freq == 0
    return epoch + 1 in validation_freq
