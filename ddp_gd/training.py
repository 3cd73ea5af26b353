"""`fit` and `evaluate`: Keras's loop over global mini-batches, at any number of workers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import keras
import numpy as np

from . import replicas, runtime, snapshot, sources, trace
from .checkpoint import Checkpoint
from .comm.base import Communicator
from .epochs import Epochs, evaluation
from .errors import ConfigError
from .hooks import Hooks
from .interrupts import Interrupts
from .loop import Loop, Source
from .snapshot import Saver
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
    if class_weight is not None:
        weights = {int(label): float(weight) for label, weight in class_weight.items()}
        settings["class_weight"] = dict(sorted(weights.items()))
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
        training = Epochs(
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
    return evaluation(model, loop, hooks, "an evaluation", Interrupts(active=False))[0]


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
