"""The epochs of a training on one worker: steps, validation, saving, leaving when asked to."""

import dataclasses
import signal
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import keras
import numpy as np

from ddp_gd import settings
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.job.signals import Interrupts
from ddp_gd.steps import keras_private
from ddp_gd.training import replicas
from ddp_gd.training.callbacks import Hooks
from ddp_gd.training.loop import Loop
from ddp_gd.training.saver import Saver
from ddp_gd.training.snapshot import Position, Snapshot


@dataclasses.dataclass
class Epochs:
    """The epochs of one call of `fit`, on one worker."""

    communicator: Communicator
    model: keras.Model
    hooks: Hooks
    loop: Loop
    validation_loop: Loop | None
    validation_freq: int | Iterable[int]
    saver: Saver | None
    saved: Snapshot | None
    interrupts: Interrupts
    save_every: int | None
    check_every: int | None
    checked: str = "its beginning"

    def run(self, initial_epoch: int, epochs: int) -> None:
        """Train up to epoch `epochs`, from `initial_epoch` or where a checkpoint was saved."""
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
        if self.saved is not None:
            self.saved.restore(self.model, self.hooks)
            first, logs = self.saved.position.epoch, self.saved.logs
            if self.saved.stopped and self.saved.position.step == 0:
                last = first  # else the end of that epoch is still to be made
        self.loop.reset(first if self.saved is not None else 0)
        for epoch in range(first, last):
            logs = self._epoch(epoch)
            stop = agree.any_worker(self.communicator, self.model.stop_training)
            if self.saver is not None:
                self.saver.epoch_ended(epoch, logs, last=stop or epoch == last - 1, stop=stop)
            if self.interrupts.active and agree.any_worker(
                self.communicator, self.interrupts.received is not None
            ):
                self._leave(Position(epoch + 1, 0), logs, stop)
            if stop:
                break
        if epochs > 0:
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
        self.hooks.callbacks.on_train_end(logs)

    def _epoch(self, epoch: int) -> dict[str, Any]:
        """Train one epoch, or the rest of one that was saved half-way."""
        model, hooks, steps = self.model, self.hooks, self.loop.steps_per_epoch
        model.reset_metrics()
        hooks.callbacks.on_epoch_begin(epoch)
        first_step = 0
        logs: dict[str, Any] = {}
        saved = self.saved
        if saved is not None and epoch == saved.position.epoch and saved.position.step > 0:
            # Once more: the metrics and what callbacks did at the beginning of the epoch.
            saved.restore(model, hooks)
            first_step, logs = saved.position.step, _logs(model, self.loop)
            if saved.stopped:  # by a callback: no step is left
                first_step, model.stop_training = steps, True
        position = Position(epoch, first_step)
        pauses = [every for every in (self.save_every, self.check_every) if every is not None]
        for first, stop in self.loop.calls(epoch, hooks.every_step, first_step, pauses):
            hooks.callbacks.on_train_batch_begin(first)
            stop, asked = self.loop.run(first, stop, self.interrupts.received is not None)
            logs = _logs(model, self.loop)
            hooks.callbacks.on_train_batch_end(stop - 1, logs)
            position = Position(epoch, stop)
            if asked:
                self._check(str(position))
                self._leave(position, logs, self.hooks.want_to_stop())
            if hooks.want_to_stop():
                break
            if stop == steps:
                break  # the end of the epoch sees to the rest
            if any((epoch * steps + stop) % every == 0 for every in pauses):
                self._check(str(position))  # before it is saved
            if self.saver is not None:
                self.saver.step_ended(position, logs)
        self.loop.end_epoch()
        if self.validation_loop is not None and _is_due(epoch, self.validation_freq):
            logs |= self._validate(self.validation_loop, position, logs)
        hooks.callbacks.on_epoch_end(epoch, logs)
        self._check(f"epoch {epoch + 1}")
        if self.loop.steps.stop_on_nan:
            replicas.require_finite(model, f"epoch {epoch + 1}")
        return logs

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


def evaluation(
    model: keras.Model, loop: Loop, hooks: Hooks, what: str, interrupts: Interrupts
) -> tuple[dict[str, float], bool]:
    """The logs of `what`, and whether some worker was asked to stop in it and it is not all."""
    hooks.callbacks.on_test_begin()
    model.reset_metrics()
    logs: dict[str, float] = {}
    loop.reset()
    for first, stop in loop.calls(epoch=0, every_step=hooks.every_step, what=what):
        hooks.callbacks.on_test_batch_begin(first)
        stop, asked = loop.run(first, stop, interrupts.received is not None)
        logs = _logs(model, loop)
        hooks.callbacks.on_test_batch_end(stop - 1, logs)
        if asked:
            loop.end_epoch()
            return logs, True
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
