"""`fit` and `evaluate`: Keras's loop over global mini-batches, at any number of workers."""

from __future__ import annotations

import dataclasses
import signal
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn

import keras
import numpy as np

from . import replicas, runtime, snapshot, sources, trace
from .checkpoint import Checkpoint
from .comm.base import Communicator
from .errors import ConfigError
from .hooks import Hooks
from .interrupts import Interrupts
from .loop import Loop, Source
from .snapshot import Position, Saver, Snapshot
from .step import Steps
from .times import Times


def fit(
    model: keras.Model,
    x: Any,
    y: Any = None,
    batch_size: int | Literal["full"] = 32,
    epochs: int = 1,
    verbose: int | str = "auto",
    callbacks: list[keras.callbacks.Callback] | None = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool | Literal["batch"] = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    validation_batch_size: int | None = None,
    validation_freq: int | Iterable[int] = 1,
    micro_batch_size: int | None = None,
    seed: int | None = None,
    checkpoint: Checkpoint | None = None,
    terminate_on_nan: bool = True,
    check_every: int | None = None,
) -> keras.callbacks.History:
    """Train `model` as `model.fit` would, on all workers of the job together.

    Every worker calls it with the same arguments; each reads and computes its share of every
    global mini-batch. Arguments that `keras.Model.fit` has mean what they mean there.

    Args:
        model: compiled; any kind. Initial weights and optimizer state are rank 0's.
        x: features: an array with one row per observation, in memory or memory-mapped, or nested
            dicts, tuples and lists of such arrays. Or a `keras.utils.PyDataset` or a
            `tf.data.Dataset` whose items are `(x, y)` or `(x, y, sample_weight)`, one global
            mini-batch each, of any number of rows. Every worker reads every item, and they compare
            what they have read before it is used: what is drawn at random in it must be seeded.
        y: targets, likewise; None where x is a data set.
        batch_size: observations averaged into one update, over all workers together; `"full"`
            takes all rows. The items of a data set are the mini-batches as they are.
        epochs: number of the last epoch.
        verbose: 0 silent, 1 a progress bar, 2 one line an epoch, "auto" the bar on a terminal and
            lines elsewhere. Only rank 0 prints.
        callbacks: run on every worker, with the same logs everywhere; those that write files
            (ModelCheckpoint, CSVLogger, TensorBoard, BackupAndRestore, ...) on rank 0 only. One
            with hooks for batches makes every step return to Python.
        validation_split: fraction of the rows, the last ones, kept for validation.
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a data set instead.
        shuffle: True for a new order every epoch, "batch" for one inside each global mini-batch.
            A PyDataset's items are ordered anew, a tf.data.Dataset's come in its own order.
        class_weight: weight of each class, for a model with one output.
        sample_weight: weight of each row.
        initial_epoch: number of the first epoch, counted from 0.
        validation_batch_size: rows of one step of validation; default `batch_size`.
        validation_freq: validate every so many epochs, or after these epochs, counted from 1.
        micro_batch_size: compute a share in pieces of so many rows, one after the other, so that a
            global mini-batch can be trained on whose activations don't fit into memory; the rows of
            a share must, twice. Same update.
        seed: of the order of rows, from 0 to 2**63 - 1; None draws one on rank 0 from NumPy's
            global generator.
        checkpoint: save the training, and go on with a saved one, see `Checkpoint`.
        terminate_on_nan: stop all workers after the first step whose loss or gradient is NaN or
            infinite; False goes on, as Keras does.
        check_every: compare the workers' copies of the model and optimizer after every so many
            updates, too, not only after every epoch.

    Returns:
        Keras's History, the same on every worker.

    Raises:
        ConfigError, DataError, ModelError: an argument that can't be used; nothing was trained.
        MismatchError: another worker was called with something else, or read something else.
        NumericsError: the loss or its gradient is NaN or infinite, unless `terminate_on_nan=False`.
        ReplicaError: the workers' copies of the model differ.
        CheckpointError: a checkpoint can't be written or read.
    """
    communicator = runtime.communicator()
    _require_counts(epochs=epochs, initial_epoch=initial_epoch)
    if check_every is not None and (
        isinstance(check_every, bool) or not isinstance(check_every, int) or check_every < 1
    ):
        raise ConfigError(f"check_every={check_every!r} must be a whole number above 0.")
    if not isinstance(checkpoint, (Checkpoint, type(None))):
        raise ConfigError(f"checkpoint={checkpoint!r} must be a ddp_gd.Checkpoint.")
    if communicator.size > 1:  # before the rest is compared: the next lines are for all or none
        runtime.agree(communicator, {"checkpoint": repr(checkpoint)})
    saved = None if checkpoint is None else snapshot.load(communicator, checkpoint)
    if saved is not None and seed is None:
        seed = saved.seed
    train, validate = sources.split(x, y, sample_weight, validation_split, validation_data)
    source = sources.for_training(
        communicator, train, class_weight, batch_size, micro_batch_size, shuffle, seed
    )
    plan = source.plan
    settings: dict[str, Any] = {
        "epochs": epochs,
        "initial_epoch": initial_epoch,
        "check_every": check_every,
        "terminate_on_nan": bool(terminate_on_nan),
        "plan": plan,
    }
    if validate is not None:
        validation_source = sources.for_validation(
            communicator, validate, validation_batch_size, micro_batch_size, source
        )
        _require_frequency(validation_freq)
        settings |= {
            "validation_batch_size": validation_source.plan.batch_size,
            "validation_freq": validation_freq,
            **{f"validation {name}": fact for name, fact in validation_source.describe().items()},
        }
    replicas.build(model, source.signature)
    facts = replicas.require_same(communicator, model, source, settings)
    if saved is not None:
        saved.require_same(facts)
        if communicator.rank == 0:
            saved.warn_of_other_bits()

    hooks = Hooks(communicator, model, callbacks, verbose, epochs, plan.steps, add_history=True)
    loop = _loop(communicator, model, source, terminate_on_nan, training=True)
    if communicator.rank == 0 and communicator.size > 1 and plan.micro_batch_size is None:
        _warn_of_shares(loop.steps)
    validation_loop = None
    if validate is not None:
        validation_loop = _loop(
            communicator, model, validation_source, terminate_on_nan, training=False
        )

    for callback in hooks.own:
        if isinstance(callback, Times):
            callback.watch(communicator, loop)
    tracer = None
    if communicator.rank == 0 and (where := trace.folder()) is not None:
        setting = {"bitwise": runtime.is_bitwise(), "micro_batch_size": plan.micro_batch_size}
        tracer = hooks.add_tracer(trace.Tracer(where, loop.steps, setting))
    saver = None
    if checkpoint is not None and communicator.rank == 0:
        saver = Saver(checkpoint, model, hooks, facts, plan.seed, plan.steps, terminate_on_nan)
    model.stop_training = False
    hooks.callbacks.on_train_begin()
    hooks.remember()
    # A callback may have restored a state, and with it the epoch to go on with, on rank 0.
    replicas.synchronize(communicator, model)
    first_epoch = replicas.from_rank_0(communicator, model._initial_epoch or initial_epoch)
    if saved is not None:
        saved.restore(model, hooks)
        first_epoch = saved.position.epoch
        if saved.stopped and saved.position.step == 0:  # else the end of that epoch is to be made
            epochs = first_epoch
    if tracer is not None:
        tracer.write_start()
    with Interrupts(active=checkpoint is not None) as interrupts:
        training = _Training(
            communicator=communicator,
            model=model,
            hooks=hooks,
            loop=loop,
            validation_loop=validation_loop,
            validation_freq=validation_freq,
            saver=saver,
            saved=saved,
            interrupts=interrupts,
            save_every=checkpoint.every_steps if checkpoint else None,
            check_every=check_every,
        )
        logs = training.run(first_epoch, epochs)
    if epochs > 0:
        model.optimizer.finalize_variable_values(model.trainable_weights)
    hooks.callbacks.on_train_end(logs)
    return model.history


@dataclasses.dataclass
class _Training:
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

    def run(self, first: int, epochs: int) -> dict[str, Any]:
        """Train the epochs `first` to `epochs - 1`, counted from 0; return the last logs."""
        logs = self.saved.logs if self.saved is not None else {}
        self.loop.reset(first if self.saved is not None else 0)
        for epoch in range(first, epochs):
            logs = self._epoch(epoch)
            stop = replicas.any_worker(self.communicator, self.model.stop_training)
            if self.saver is not None:
                self.saver.epoch_ended(epoch, logs, last=stop or epoch == epochs - 1, stop=stop)
            if self.interrupts.active and replicas.any_worker(
                self.communicator, self.interrupts.received is not None
            ):
                self._leave(Position(epoch + 1, 0), logs, stop)
            if stop:
                break
        return logs

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
            first_step, logs = saved.position.step, _logs(model)
            if saved.stopped:  # by a callback: no step is left
                first_step, model.stop_training = steps, True
        position = Position(epoch, first_step)
        pauses = [every for every in (self.save_every, self.check_every) if every is not None]
        for first, stop in self.loop.calls(epoch, hooks.every_step, first_step, pauses):
            hooks.callbacks.on_train_batch_begin(first)
            stop, asked = self.loop.run(first, stop, self.interrupts.received is not None)
            logs = _logs(model)
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
        changed = loop.steps.state.changed if self.interrupts.active else []
        before = [variable.value.numpy() for variable in changed]
        what = f"the validation of epoch {position.epoch + 1}"
        validation_logs, asked = _evaluate(self.model, loop, self.hooks, what, self.interrupts)
        if asked:
            for variable, value in zip(changed, before, strict=True):
                variable.assign(value)
            self._check(str(position))
            self._leave(position, logs, self.hooks.want_to_stop())
        return {f"val_{name}": value for name, value in validation_logs.items()}

    def _check(self, now: str) -> None:
        """Compare the workers' copies of the model."""
        draws_globally = self.loop.steps.state.draws_globally
        replicas.check(self.communicator, self.model, draws_globally, self.checked, now)
        self.checked = now

    def _leave(self, position: Position, logs: dict[str, Any], stopped: bool) -> NoReturn:
        """End all workers after the same step, when rank 0 has saved it."""
        self.loop.end_epoch()
        received = self.interrupts.received
        by_hand = replicas.any_worker(self.communicator, received == signal.SIGINT)
        if self.saver is not None:
            path = self.saver.save(position, logs, stopped)
            name = signal.Signals(received or (signal.SIGINT if by_hand else signal.SIGTERM)).name
            sys.stderr.write(
                f"ddp_gd: stopped by {name} after {position}; saved in {path}. Go on with resume.\n"
            )
        self.communicator.barrier()
        if by_hand and self.communicator.size == 1:
            raise KeyboardInterrupt
        sys.exit(128 + (signal.SIGINT if by_hand else signal.SIGTERM))


def evaluate(
    model: keras.Model,
    x: Any,
    y: Any = None,
    batch_size: int = 32,
    sample_weight: Any = None,
    verbose: int | str = "auto",
) -> dict[str, float]:
    """Evaluate `model` as `model.evaluate` would, on all workers of the job together.

    Args:
        model: compiled; its weights are rank 0's.
        x: features, or a data set, as in `fit`.
        y: targets; None where x is a data set.
        batch_size: rows of one step, over all workers together; the items of a data set are the
            steps as they are.
        sample_weight: weight of each row.
        verbose: as in `fit`.

    Returns:
        The loss and every metric by name, over the rows of all workers; the same on each of them.

    Raises:
        ConfigError, DataError, ModelError, MismatchError, NumericsError: as in `fit`.
    """
    communicator = runtime.communicator()
    source = sources.for_evaluation(communicator, (x, y, sample_weight), batch_size)
    replicas.build(model, source.signature)
    replicas.require_same(communicator, model, source, {"batch_size": batch_size})
    replicas.synchronize(communicator, model)
    loop = _loop(communicator, model, source, training=False)
    hooks = Hooks(communicator, model, None, verbose, epochs=1, steps=loop.steps_per_epoch)
    return _evaluate(model, loop, hooks, "an evaluation", Interrupts(active=False))[0]


def _evaluate(
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
        logs = _logs(model)
        hooks.callbacks.on_test_batch_end(stop - 1, logs)
        if asked:
            loop.end_epoch()
            return logs, True
    loop.end_epoch()
    logs = dict(sorted(logs.items()))  # as Keras has them after an evaluation
    hooks.callbacks.on_test_end(logs)
    return logs, False


def _loop(
    communicator: Communicator,
    model: keras.Model,
    source: Source,
    stop_on_nan: bool = True,
    *,
    training: bool,
) -> Loop:
    bitwise = runtime.is_bitwise()
    steps = Steps(
        model,
        communicator,
        source.signature,
        micro_batch_size=source.plan.micro_batch_size,
        empty_shares=source.plan.has_empty_shares(communicator.size),
        training=training,
        bitwise_lanes=runtime.inter_op_threads() if bitwise else 0,
        stop_on_nan=stop_on_nan,
    )
    return Loop(steps, source, communicator)


def _warn_of_shares(steps: Steps) -> None:
    """Name the layers whose result depends on how a global mini-batch is cut into shares."""
    if layers := steps.state.layers_seeing_shares():
        warnings.warn(
            f"The result depends on the number of workers: {', '.join(layers)} see only a worker's "
            "share of each mini-batch (batch statistics), or draw random numbers for it. Give "
            "fit(micro_batch_size=...), or use ddp_gd.init(bitwise=True): mini-batches are then "
            "cut in the same way at any number of workers.",
            stacklevel=3,
        )


def _logs(model: keras.Model) -> dict[str, Any]:
    values = {name: np.asarray(value) for name, value in model.get_metrics_result().items()}
    # F1Score, for one, has a number for each class.
    return {name: value if value.ndim else float(value) for name, value in values.items()}


def _require_counts(**counts: Any) -> None:
    for name, value in counts.items():
        if not isinstance(value, (int, np.integer)) or value < 0:
            raise ConfigError(f"{name}={value!r} must be a whole number, 0 or more.")


def _require_frequency(validation_freq: Any) -> None:
    number = isinstance(validation_freq, (int, np.integer))
    if validation_freq < 1 if number else not isinstance(validation_freq, Iterable):
        raise ConfigError(
            f"validation_freq={validation_freq!r} must be a whole number, 1 or more, or the epochs "
            "to validate after."
        )


def _is_due(epoch: int, validation_freq: int | Iterable[int]) -> bool:
    """Tell whether `epoch`, counted from 0, ends with a validation, as Keras does."""
    if isinstance(validation_freq, (int, np.integer)):
        return (epoch + 1) % validation_freq == 0
    return epoch + 1 in validation_freq
