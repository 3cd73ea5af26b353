"""`evaluate`: loss and metrics over the rows of all workers."""

from typing import Any

import keras

from ddp_gd.batching import sources
from ddp_gd.job import runtime
from ddp_gd.job.signals import Interrupts
from ddp_gd.training import identity, replicas
from ddp_gd.training.callbacks import Hooks
from ddp_gd.training.epochs import evaluation
from ddp_gd.training.loop import open_loop


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
    identity.build(model, source.signature, training=False)
    identity.require_same(communicator, model, source, {"batch_size": batch_size})
    replicas.synchronize(communicator, model)
    loop = open_loop(communicator, model, source, training=False)
    hooks = Hooks(communicator, model, None, verbose, epochs=1, steps=loop.steps_per_epoch)
    return evaluation(model, loop, hooks, "an evaluation", Interrupts(active=False))[0]
