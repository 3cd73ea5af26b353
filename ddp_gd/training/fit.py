"""`fit`: Keras's training over global mini-batches, at any number of workers."""

import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from ddp_gd.batching import sources
from ddp_gd.batching.plan import require_part
from ddp_gd.batching.source import Source
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ConfigError
from ddp_gd.job import runtime
from ddp_gd.steps import keras_private
from ddp_gd.training import audit as audits
from ddp_gd.training import identity, replicas
from ddp_gd.training.callbacks import Hooks
from ddp_gd.training.epochs import Epochs
from ddp_gd.training.saving import snapshot
from ddp_gd.training.saving.checkpoint import Checkpoint
from ddp_gd.training.saving.saver import Saver


@runtime.collective
def fit(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | Literal["full"] | None = None,
    epochs: int = 1,
    verbose: int | str = "auto",
    callbacks: list[keras.callbacks.Callback] | None = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool | Literal["batch"] = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int | Iterable[int] = 1,
    micro_batch_size: int | None = None,
    seed: int | None = None,
    checkpoint: Checkpoint | None = None,
    terminate_on_nan: bool = True,
    check_every: int | None = None,
    audit: float = 0.0,
    read: Literal["rank 0", "every worker"] = "rank 0",
) -> keras.callbacks.History:
    """Train `model` as `model.fit` would, on all workers of the job together.

    Every worker calls it with the same arguments; each reads and computes its share of every
    global mini-batch. Arguments that `keras.Model.fit` has mean what they mean there.

    Args:
        model: compiled; any kind. Initial weights and optimizer state are rank 0's.
        x: features: an array with one row per observation, in memory or memory-mapped, or nested
            dicts, tuples and lists of such arrays. Or a `keras.utils.PyDataset`, a
            `tf.data.Dataset`, a generator or another iterable whose items are `(x, y)` or
            `(x, y, sample_weight)`, one global mini-batch each, of any number of rows; see `read`.
        y: targets, likewise; None where x is a data set.
        batch_size: observations averaged into one update, over all workers together; `"full"`
            takes all rows, as does a number above theirs. None is 32, or with `steps_per_epoch`
            what takes all rows in so many steps. The items of a data set are the mini-batches as
            they are.
        epochs: number of the last epoch; `keras.config.set_max_epochs` limits it.
        verbose: 0 silent, 1 a progress bar, 2 one line an epoch, "auto" the bar on a terminal and
            lines elsewhere. Only rank 0 prints.
        callbacks: run on every worker, with the same logs everywhere; those that write files
            (ModelCheckpoint, CSVLogger, TensorBoard, BackupAndRestore, ...) on rank 0 only. One
            with hooks for batches makes every step return to Python, or every so many as
            `compile(steps_per_execution=...)` says.
        validation_split: fraction of the rows, the last ones, kept for validation.
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a data set instead.
        shuffle: True for a new order every epoch, "batch" for one inside each global mini-batch.
            A PyDataset's items are ordered anew, a tf.data.Dataset's come in its own order.
        class_weight: weight of each class, for a model with one output.
        sample_weight: weight of each row.
        initial_epoch: number of the first epoch, counted from 0.
        steps_per_epoch: an epoch has so many steps, and the next one goes on where it ended; it
            ends sooner, with a warning, where the data do. None takes all data.
        validation_steps: likewise; each validation begins with the first one.
        validation_batch_size: rows of one step of validation; default `batch_size`.
        validation_freq: validate every so many epochs, or after these epochs, counted from 1.
        micro_batch_size: compute a share in pieces of so many rows, one after the other, so that a
            global mini-batch can be trained on whose activations don't fit into memory; the rows of
            a share must, twice. Same update.
        seed: of the order of rows, from 0 to 2**63 - 1; None draws one on rank 0 from NumPy's
            global generator.
        checkpoint: save the training, and go on with a saved one, see `Checkpoint`.
        terminate_on_nan: stop all workers after the first step whose loss or gradient is NaN or
            infinite; False goes on, as Keras does, and so does True where the callback
            `keras.callbacks.TerminateOnNaN` sees to it.
        check_every: compare the workers' copies of the model and optimizer after every so many
            updates, too, not only after every epoch.
        audit: in bitwise mode, the part of all micro-batches that another worker computes, too, to
            be compared before the update; 0 is none. In one process that one does, at another time.
        read: `"rank 0"`: of a data set each mini-batch is read by one worker, which hands the
            others their shares: those of a PyDataset by all in turn, others by rank 0. `"every
            worker"`: all read all of it, and compare what they have read before it is used; then
            what is drawn at random in it must be seeded.

    Returns:
        Keras's History, the same on every worker.

    Raises:
        ConfigError, DataError, ModelError: an argument that can't be used; nothing was trained.
        MismatchError: another worker was called with something else, or read something else.
        NumericsError: the loss or its gradient is NaN or infinite, unless `terminate_on_nan=False`.
        AuditError: a worker computed something wrong.
        ReplicaError: the workers' copies of the model differ.
        CheckpointError: a checkpoint can't be written or read.
    """
    communicator = runtime.communicator()
    _require_usable(epochs, initial_epoch, check_every, checkpoint)
    part = require_part(audit)
    if communicator.rank == 0:
        _warn_of_own_fit(model)
    saved = snapshot.load(communicator, checkpoint)
    if saved is not None and seed is None:
        seed = saved.seed

    steps = sources.steps_of(model, "steps_per_epoch", steps_per_epoch)
    train, validate = sources.split(x, y, sample_weight, validation_split, validation_data)
    source = sources.for_training(
        communicator, train, class_weight, batch_size, micro_batch_size, shuffle, seed, steps, read
    )
    audits.require_possible(part, model, source)
    validation_source = None
    if validate is not None:
        steps = sources.steps_of(model, "validation_steps", validation_steps)
        validation_source = sources.for_validation(
            communicator, validate, validation_batch_size, micro_batch_size, source, steps, read
        )

    settings: dict[str, Any] = {
        "epochs": _limited(epochs),
        "initial_epoch": initial_epoch,
        "check_every": check_every,
        "audit": part,
        "terminate_on_nan": bool(terminate_on_nan),
        **_facts(class_weight, validation_source, validation_freq),
    }
    data = (source, validation_source)
    _train(communicator, model, data, callbacks, verbose, settings, checkpoint, saved)
    return model.history


def _train(
    communicator: Communicator,
    model: keras.Model,
    data: tuple[Source, Source | None],
    callbacks: list[keras.callbacks.Callback] | None,
    verbose: int | str,
    settings: dict[str, Any],
    checkpoint: Checkpoint | None,
    saved: snapshot.Snapshot | None,
) -> None:
    """Agree on what is to be trained, compile the steps, and make the epochs of `settings`."""
    source, validation_source = data
    identity.build(model, source.signature)
    facts = identity.require_same(communicator, model, source, settings)
    audits.arrange(communicator, source, settings["audit"])
    if saved is not None:
        saved.require_same(facts)
        saved.warn_of_other_bits(communicator)
        if communicator.rank == 0 and checkpoint is not None:
            where = f"the newest checkpoint in {checkpoint.directory}"
            sys.stderr.write(f"ddp_gd: goes on after {saved.position}, from {where}\n")
    epochs = settings["epochs"]
    hooks = Hooks(communicator, model, callbacks, verbose, epochs, source.steps, "train")
    stop_on_nan = settings["terminate_on_nan"] and not hooks.deal_with_nan()
    replicas.synchronize(communicator, model)
    loop = hooks.open_loop(source, stop_on_nan, training=True)
    validation_loop = None
    if validation_source is not None:
        validation_loop = hooks.open_loop(validation_source, stop_on_nan, training=False)
    hooks.attach(loop)
    source.marks = checkpoint is not None
    saver, folder = None, None
    if checkpoint is not None and communicator.rank == 0:
        saver = Saver(checkpoint, model, hooks, facts, source, stop_on_nan)
        folder = Path(checkpoint.directory)
    with audits.left_in(folder), closing(source), closing(validation_source or source):
        Epochs(
            communicator=communicator,
            model=model,
            hooks=hooks,
            loop=loop,
            validation_loop=validation_loop,
            validation_freq=settings.get("validation_freq", 1),
            check_every=settings["check_every"],
            checkpoint=checkpoint,
            saver=saver,
            saved=saved,
        ).run(settings["initial_epoch"], epochs)
    communicator.barrier()  # what rank 0's callbacks wrote is there for the others


def _warn_of_own_fit(model: keras.Model) -> None:
    """Say that a model's own `fit` isn't called, which might have prepared the rows.

    Models of keras_hub have none to prepare with where their `preprocessor` is None.
    """
    if keras_private.overrides_fit(model) and getattr(model, "preprocessor", "?") is not None:
        warnings.warn(
            f"{type(model).__name__} has a fit() of its own, which ddp_gd.fit doesn't call. If it "
            "prepares the rows, prepare them before: x, y, sample_weight = keras.utils."
            "unpack_x_y_sample_weight(model.preprocessor(x, y)) for a model of keras_hub, whose "
            "preprocessor may then be None; and give ddp_gd.fit the result.",
            stacklevel=4,
        )


def _require_usable(epochs: Any, initial_epoch: Any, check_every: Any, checkpoint: Any) -> None:
    for name, value in (("epochs", epochs), ("initial_epoch", initial_epoch)):
        if not isinstance(value, (int, np.integer)) or value < 0:
            raise ConfigError(f"{name}={value!r} must be a whole number, 0 or more.")
    if check_every is not None and (
        isinstance(check_every, bool) or not isinstance(check_every, int) or check_every < 1
    ):
        raise ConfigError(f"check_every={check_every!r} must be a whole number above 0.")
    if not isinstance(checkpoint, (Checkpoint, type(None))):
        raise ConfigError(f"checkpoint={checkpoint!r} must be a ddp_gd.Checkpoint.")


def _limited(epochs: int) -> int:
    """No more of them than `keras.config.set_max_epochs` allows."""
    most = keras.config.max_epochs()
    if most and most < epochs:
        warnings.warn(f"Limiting epochs to {most}", stacklevel=4)
        return most
    return epochs


def _facts(
    class_weight: Mapping[int, float] | None, validation: Source | None, frequency: Any
) -> dict[str, Any]:
    """What makes up a training beside its model, rows and numbers of epochs."""
    facts: dict[str, Any] = {}
    if class_weight is not None:
        weights = {int(label): float(weight) for label, weight in class_weight.items()}
        facts["class_weight"] = dict(sorted(weights.items()))
    if validation is not None:
        number = isinstance(frequency, (int, np.integer))
        if frequency < 1 if number else not isinstance(frequency, Iterable):
            raise ConfigError(
                f"validation_freq={frequency!r} must be a whole number, 1 or more, or the epochs "
                "to validate after."
            )
        facts["validation_freq"] = frequency
        facts |= {f"validation {name}": fact for name, fact in validation.describe().items()}
    return facts
