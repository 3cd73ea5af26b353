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

from . import replicas, runtime, snapshot, trace
from .arrays import Arrays
from .checkpoint import Checkpoint
from .comm.base import Communicator
from .errors import ConfigError, DataError
from .hooks import Hooks
from .interrupts import Interrupts
from .loop import Loop
from .plan import Plan
from .snapshot import Position, Saver
from .split import train_validation_split
from .step import Steps


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
) -> keras.callbacks.History:
    """Train `model` as `model.fit` would, on all workers of the job together.

    Every worker calls it with the same arguments; each reads and computes its share of every
    global mini-batch. Arguments that `keras.Model.fit` has mean what they mean there.

    Args:
        model: compiled; any kind. Initial weights and optimizer state are rank 0's.
        x: features: an array with one row per observation, in memory or memory-mapped, or nested
            dicts, tuples and lists of such arrays.
        y: targets, likewise.
        batch_size: observations averaged into one update, over all workers together; `"full"`
            takes all rows.
        epochs: number of the last epoch.
        verbose: 0 silent, 1 a progress bar, 2 one line an epoch, "auto" the bar on a terminal and
            lines elsewhere. Only rank 0 prints.
        callbacks: run on every worker, with the same logs everywhere; those that write files
            (ModelCheckpoint, CSVLogger, TensorBoard, BackupAndRestore, ...) on rank 0 only. One
            with hooks for batches makes every step return to Python.
        validation_split: fraction of the rows, the last ones, kept for validation.
        validation_data: `(x, y)` or `(x, y, sample_weight)` instead.
        shuffle: True for a new order every epoch, "batch" for one inside each global mini-batch.
        class_weight: weight of each class, for a model with one output.
        sample_weight: weight of each row.
        initial_epoch: number of the first epoch, counted from 0.
        validation_batch_size: rows of one step of validation; default `batch_size`.
        validation_freq: validate every so many epochs, or after these epochs, counted from 1.
        micro_batch_size: compute a share in pieces of so many rows, one after the other, so that a
            global mini-batch larger than memory can be trained on. Same update.
        seed: of the order of rows, from 0 to 2**63 - 1; None draws one on rank 0 from NumPy's
            global generator.
        checkpoint: save the training, and go on with a saved one, see `Checkpoint`.

    Returns:
        Keras's History, the same on every worker.

    Raises:
        ConfigError, DataError, ModelError: an argument that can't be used; nothing was trained.
        MismatchError: another worker was called with something else.
        NumericsError: the loss is NaN or infinite.
        ReplicaError: the workers' copies of the model differ after an epoch.
        CheckpointError: a checkpoint can't be written or read.
    """
    communicator = runtime.communicator()
    _require_counts(epochs=epochs, initial_epoch=initial_epoch)
    if not isinstance(checkpoint, (Checkpoint, type(None))):
        raise ConfigError(f"checkpoint={checkpoint!r} must be a ddp_gd.Checkpoint.")
    saved = None if checkpoint is None else snapshot.load(communicator, checkpoint)
    if saved is not None and seed is None:
        seed = saved.seed
    train, validate = _split(x, y, sample_weight, validation_split, validation_data)
    arrays = Arrays(train[0], train[1], train[2], class_weight)
    batch_size = _batch_size(batch_size, arrays.rows)
    plan = Plan(
        rows=arrays.rows,
        batch_size=batch_size,
        micro_batch_size=_micro_batch_size(micro_batch_size, batch_size),
        shuffle=shuffle,
        seed=replicas.shared_seed(communicator, seed) if shuffle else 0,
    )
    settings = {"epochs": epochs, "initial_epoch": initial_epoch, "plan": plan}
    validation_batch_size = validation_batch_size or plan.batch_size
    if validate is not None:
        validation_arrays = Arrays(*validate)
        _require_frequency(validation_freq)
        settings |= {
            "validation_batch_size": validation_batch_size,
            "validation_freq": validation_freq,
            **{f"validation {name}": fact for name, fact in validation_arrays.describe().items()},
        }
    replicas.build(model, arrays.signature)
    facts = replicas.require_same(communicator, model, arrays, settings)
    if saved is not None:
        saved.require_same(facts)
        if communicator.rank == 0:
            saved.warn_of_other_bits()

    hooks = Hooks(communicator, model, callbacks, verbose, epochs, plan.steps, add_history=True)
    loop = _loop(communicator, model, arrays, plan, training=True)
    if communicator.rank == 0 and communicator.size > 1 and plan.micro_batch_size is None:
        _warn_of_shares(loop.steps)
    validation_loop = None
    if validate is not None:
        # A validation batch is as large as a training batch: it may need the pieces, too.
        validation_loop = _evaluation_loop(
            communicator, model, validation_arrays, validation_batch_size, micro_batch_size
        )

    tracer = None
    if communicator.rank == 0 and (where := trace.folder()) is not None:
        setting = {"bitwise": runtime.is_bitwise(), "micro_batch_size": plan.micro_batch_size}
        tracer = hooks.add_tracer(trace.Tracer(where, loop.steps, setting))
    saver = None
    if checkpoint is not None and communicator.rank == 0:
        saver = Saver(checkpoint, model, hooks, facts, plan.seed, plan.steps)
    model.stop_training = False
    hooks.callbacks.on_train_begin()
    hooks.remember()
    # A callback may have restored a state, and with it the epoch to go on with, on rank 0.
    replicas.synchronize(communicator, model)
    first_epoch = replicas.from_rank_0(communicator, model._initial_epoch or initial_epoch)
    start = Position(first_epoch, 0)
    logs: dict[str, float] = {}
    if saved is not None:
        start, logs = saved.position, saved.logs
        saved.restore(model, hooks)
        if saved.stopped:
            epochs = start.epoch
    if tracer is not None:
        tracer.write_start()
    with Interrupts(active=checkpoint is not None) as interrupts:
        for epoch in range(start.epoch, epochs):
            model.reset_metrics()
            hooks.callbacks.on_epoch_begin(epoch)
            first_step = 0
            if saved is not None and epoch == start.epoch and start.step > 0:
                # Once more: the metrics and what callbacks did at the beginning of the epoch.
                saved.restore(model, hooks)
                first_step, logs = start.step, _logs(model)
            pause_every = checkpoint.every_steps if saver is not None and checkpoint else None
            for first, stop in loop.calls(epoch, hooks.every_step, first_step, pause_every):
                hooks.callbacks.on_train_batch_begin(first)
                stop, asked = loop.run(first, stop, interrupts.received is not None)
                logs = _logs(model)
                hooks.callbacks.on_train_batch_end(stop - 1, logs)
                if asked:
                    _leave(communicator, interrupts, saver, Position(epoch, stop), logs)
                if hooks.want_to_stop():
                    break
                if saver is not None and stop < plan.steps:
                    saver.step_ended(Position(epoch, stop), logs)
            if validation_loop is not None and _is_due(epoch, validation_freq):
                validation_logs = _evaluate(model, validation_loop, hooks)
                logs |= {f"val_{name}": value for name, value in validation_logs.items()}
            hooks.callbacks.on_epoch_end(epoch, logs)
            replicas.check(communicator, model, epoch)
            stop_training = replicas.any_worker(communicator, model.stop_training)
            if saver is not None:
                last = stop_training or epoch == epochs - 1
                saver.epoch_ended(epoch, logs, last=last, stop=stop_training)
            if stop_training:
                break
            if checkpoint and replicas.any_worker(communicator, interrupts.received is not None):
                _leave(communicator, interrupts, saver, Position(epoch + 1, 0), logs)
    if epochs > 0:
        model.optimizer.finalize_variable_values(model.trainable_weights)
    hooks.callbacks.on_train_end(logs)
    return model.history


def _leave(
    communicator: Communicator,
    interrupts: Interrupts,
    saver: Saver | None,
    position: Position,
    logs: dict[str, Any],
) -> NoReturn:
    """End all workers after the same step, when rank 0 has saved it."""
    by_hand = replicas.any_worker(communicator, interrupts.received == signal.SIGINT)
    if saver is not None:
        path = saver.save(position, logs)
        sys.stderr.write(
            f"ddp_gd: stopped by {'SIGINT' if by_hand else 'SIGTERM'} after {position}; saved in "
            f"{path}. Go on with resume.\n"
        )
    communicator.barrier()
    if by_hand and communicator.size == 1:
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
        x: features, as in `fit`.
        y: targets.
        batch_size: rows of one step, over all workers together.
        sample_weight: weight of each row.
        verbose: as in `fit`.

    Returns:
        The loss and every metric by name, over the rows of all workers; the same on each of them.

    Raises:
        ConfigError, DataError, ModelError, MismatchError, NumericsError: as in `fit`.
    """
    communicator = runtime.communicator()
    arrays = Arrays(x, y, sample_weight)
    replicas.build(model, arrays.signature)
    replicas.require_same(communicator, model, arrays, {"batch_size": batch_size})
    replicas.synchronize(communicator, model)
    loop = _evaluation_loop(communicator, model, arrays, batch_size)
    hooks = Hooks(communicator, model, None, verbose, epochs=1, steps=loop.steps_per_epoch)
    return _evaluate(model, loop, hooks)


def _evaluate(model: keras.Model, loop: Loop, hooks: Hooks) -> dict[str, float]:
    hooks.callbacks.on_test_begin()
    model.reset_metrics()
    logs: dict[str, float] = {}
    for first, stop in loop.calls(epoch=0, every_step=hooks.every_step):
        hooks.callbacks.on_test_batch_begin(first)
        loop.run(first, stop)
        logs = _logs(model)
        hooks.callbacks.on_test_batch_end(stop - 1, logs)
    logs = dict(sorted(logs.items()))  # as Keras has them after an evaluation
    hooks.callbacks.on_test_end(logs)
    return logs


def _loop(
    communicator: Communicator, model: keras.Model, arrays: Arrays, plan: Plan, *, training: bool
) -> Loop:
    bitwise = runtime.is_bitwise()
    steps = Steps(
        model,
        communicator,
        arrays.signature,
        micro_batch_size=plan.micro_batch_size,
        empty_shares=plan.has_empty_shares(communicator.size),
        training=training,
        bitwise_lanes=runtime.inter_op_threads() if bitwise else 0,
    )
    return Loop(steps, arrays, plan, communicator)


def _evaluation_loop(
    communicator: Communicator,
    model: keras.Model,
    arrays: Arrays,
    batch_size: int,
    micro_batch_size: int | None = None,
) -> Loop:
    plan = Plan(arrays.rows, batch_size, micro_batch_size)
    size = _micro_batch_size(plan.micro_batch_size, plan.batch_size)
    plan = dataclasses.replace(plan, micro_batch_size=size)
    return _loop(communicator, model, arrays, plan, training=False)


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


def _split(
    x: Any, y: Any, sample_weight: Any, validation_split: float, validation_data: Any
) -> tuple[tuple, tuple | None]:
    """Training and validation data, each `(x, y, sample_weight)`; None without validation."""
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
            raise DataError(
                f"validation_data is {type(validation_data).__name__!r}; expected (x, y) or "
                "(x, y, sample_weight)."
            )
        return (x, y, sample_weight), tuple(validation_data)
    if not validation_split:
        return (x, y, sample_weight), None
    arrays = Arrays(x, y, sample_weight)
    train, _ = train_validation_split(arrays.rows, validation_split)
    return arrays.split(train.stop)


def _batch_size(batch_size: int | str, rows: int) -> int:
    if batch_size == "full":
        return rows
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
        raise ConfigError(f"batch_size={batch_size!r} must be a whole number or 'full'.")
    if batch_size > rows:
        raise ConfigError(
            f"batch_size={batch_size} is larger than the {rows} rows of the training data; give "
            f"{rows} or less, or 'full' for one update an epoch."
        )
    return int(batch_size)


def _micro_batch_size(micro_batch_size: int | None, batch_size: int) -> int | None:
    """In bitwise mode every batch has micro-batches: eight or more, of at most 128 rows."""
    if micro_batch_size is None and runtime.is_bitwise():
        return max(1, min(128, batch_size // 8))
    return micro_batch_size


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
