"""A model's compiled steps, kept from one call to the next as Keras keeps its `train_function`.

Tracing them, and finding out what shares make up of the whole, takes longer than many an epoch, and
programs call `fit` once an epoch. As in Keras they are made anew after `compile`; here, too, where
layers or variables are others, or frozen or not as they were.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from ddp_gd.batching.arrays import Signature
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.steps import keras_private, state
from ddp_gd.steps.rules import Options
from ddp_gd.steps.step import Steps

_ATTRIBUTE = "_ddp_gd_steps"


@dataclasses.dataclass
class _Kept:
    """The steps of one model, for training and for evaluation."""

    steps: dict[bool, tuple[Any, Steps]]  # by Options.training, with what they were made of


def steps_of(
    communicator: Communicator,
    model: keras.Model,
    signature: Signature,
    options: Options,
    make: Callable[[], Steps],
) -> Steps:
    """The steps that are kept if they are still the model's, else new ones. Collective.

    Args:
        communicator: the workers.
        model: compiled and built.
        signature: of the rows.
        options: how the steps are to be made.
        make: makes them.
    """
    # Not by setattr, which looks for layers in it; nor a dict, in which optimizers are looked for.
    kept = vars(model).setdefault(_ATTRIBUTE, _Kept({}))
    made_of, steps = kept.steps.pop(options.training, (None, None))
    reusable = made_of == _made_of(model, signature, options) and steps.model is model
    if agree.any_worker(communicator, not reusable):
        steps = make()
    steps.ask_to_stop.assign(0)
    kept.steps[options.training] = (_made_of(model, signature, options), steps)
    return steps


def _made_of(model: keras.Model, signature: Signature, options: Options) -> list[Any]:
    """What the steps depend on. Objects are compared as such, and held: no other gets their id."""
    layers = keras_private.layers(model)
    parts = [
        keras_private.compile_config(model),
        keras_private.global_seed(),
        *state.optimizers(model),
        *layers,
        *model.variables,
    ]
    facts = [
        signature,
        options,
        keras_private.overrides(model, options.training),
        (model.jit_compile, model.run_eagerly),
        [(layer.trainable, layer.compute_dtype) for layer in layers],
        [variable.trainable for variable in model.variables],
    ]
    return [*facts, *map(_Same, parts)]


class _Same:
    """Equal to nothing but the same object."""

    def __init__(self, part: Any):
        self._part = part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._part is self._part

    __hash__ = None  # type: ignore[assignment]
