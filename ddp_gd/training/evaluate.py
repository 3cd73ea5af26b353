"""`evaluate`: a model's losses and metrics over all rows, computed by all workers together."""

from contextlib import closing
from typing import Any, Literal

import keras

from ddp_gd.batching import sources
from ddp_gd.job import runtime
from ddp_gd.job.signals import Interrupts
from ddp_gd.steps import keras_private
from ddp_gd.training import identity, replicas
from ddp_gd.training.callbacks import Hooks
from ddp_gd.training.epochs import evaluation


@runtime.collective
def evaluate(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    verbose: int | str = "auto",
    sample_weight: Any = None,
    steps: int | None = None,
    callbacks: list[keras.callbacks.Callback] | None = None,
    return_dict: bool = True,
    read: Literal["rank 0", "every worker"] = "rank 0",
) -> Any:
    """Evaluate `model` as `model.evaluate` would, on all workers of the job together.

    Args:
        model: compiled; its weights are rank 0's.
        x: features, or a data set, as in `fit`.
        y: targets; None where x is a data set.
        batch_size: rows of one step, over all workers together; None is 32. The items of a data
            set are the steps as they are.
        verbose: as in `fit`.
        sample_weight: weight of each row.
        steps: make so many steps; None takes all data.
        callbacks: as in `fit`; one may set `model.stop_evaluating`.
        return_dict: False gives what Keras gives by default: the loss, or a list of it and the
            metrics.
        read: who reads a data set, as in `fit`.

    Returns:
        The loss and every metric by name, over the rows of all workers; the same on each of them.

    Raises:
        ConfigError, DataError, ModelError, MismatchError, NumericsError: as in `fit`.
    """
    communicator = runtime.communicator()
    wanted = sources.steps_of(model, "steps", steps)
    data = (x, y, sample_weight)
    source = sources.for_evaluation(communicator, data, batch_size, steps=wanted, read=read)
    identity.build(model, source.signature, training=False)
    identity.require_same(communicator, model, source, {"return_dict": return_dict})
    replicas.synchronize(communicator, model)
    hooks = Hooks(communicator, model, callbacks, verbose, epochs=1, steps=source.steps)
    stop_on_nan = not hooks.deal_with_nan()
    loop = hooks.open_loop(source, stop_on_nan, training=False)
    with closing(source):
        logs, _ = evaluation(model, loop, hooks, "an evaluation", Interrupts(active=False))
    return logs if return_dict else keras_private.in_order(model, logs)
