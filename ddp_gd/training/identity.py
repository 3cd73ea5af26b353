"""What a model is, in words: built on the data, and compared between the workers."""

import functools
import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from ddp_gd.batching.arrays import Signature
from ddp_gd.batching.source import Source
from ddp_gd.comm import agree
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ConfigError
from ddp_gd.job import bitwise, runtime
from ddp_gd.steps import graph, keras_private
from ddp_gd.steps.whole import keras_step
from ddp_gd.training import replicas


def build(model: keras.Model, signature: Signature, training: bool = True) -> None:
    """Create every variable of the model, its metrics and its optimizer, as `fit` would.

    Raises:
        ConfigError: the model isn't compiled.
        ValueError, RuntimeError: Keras's own, when the data don't fit the model.
    """
    if not model.compiled:
        raise ConfigError("The model is not compiled; call model.compile(optimizer, loss) first.")
    step = functools.partial(keras_step, model, signature, training)
    if not keras_private.overrides(model, training):
        specs = [keras.KerasTensor(spec.shape, spec.dtype.name) for spec in signature.specs]
        try:
            keras_private.build(model, signature.unpack(specs))
            return
        except (ValueError, RuntimeError) as error:
            # Keras calls the model as for inference, where some layers give other shapes.
            try:
                graph.inlined(step, signature.specs)
                return
            except Exception:  # the same is wrong with it, in words about a graph
                raise error from None
    graph.inlined(step, signature.specs)


def require_same(
    communicator: Communicator, model: keras.Model, source: Source, settings: dict[str, Any]
) -> dict[str, str]:
    """Refuse to start unless every worker was called with what rank 0 was called with.

    Returns:
        What `fit` was called with, in words: settings, data, model, optimizer, losses; in bitwise
        mode also what the bits depend on.

    Raises:
        MismatchError: on every worker, naming the rank and the difference.
        ConfigError: bitwise mode, and what it needs is not set.
    """
    if runtime.is_bitwise():
        bitwise.require_preconditions()
    facts = _facts(model, source, settings)
    if communicator.size > 1:
        agree.require_same_facts(communicator, facts)
    return facts


def model_facts(model: keras.Model) -> dict[str, str]:
    """The class of the model, every variable, and what each layer was made with, in words."""
    facts = {"model": f"{type(model).__name__} {model.name}"}
    for kind in ("trainable_variables", "non_trainable_variables"):
        for number, v in enumerate(getattr(model, kind)):
            facts[f"model.{kind}[{number}]"] = f"{v.path} {v.dtype}{list(v.shape)}"
    for number, layer in enumerate(keras_private.layers(model)):  # the first is the model
        place = f"layer {number}" if number else "model"
        if number:
            name = re.sub(r"_\d+(?![^\W_])", "", layer.name)  # Keras numbers layers through
            facts[place] = f"{type(layer).__name__} {name}"
        facts |= {f"{place} {name}": text for name, text in _configuration(layer).items()}
    return facts


def _configuration(layer: Any) -> dict[str, str]:
    """What a layer says that it was made with; nothing if it doesn't."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras's, of what it can write but not read
            config = dict(layer.get_config())
    except Exception:  # the user's, or Keras's where the layer has no get_config
        return {}
    inner = config.get("layers")
    if isinstance(inner, list) and all(isinstance(c, dict) and "class_name" in c for c in inner):
        config["layers"] = None
        numbers = {c["name"]: number for number, c in enumerate(inner) if "name" in c}
        listed = {sub.name for sub in keras_private.sublayers(layer)}  # they speak for themselves
        for number, c in enumerate(inner):
            if c.get("name", c["config"].get("name")) not in listed:
                config[f"operations[{number}]"] = c
            config[f"inputs[{number}]"] = _placed(c.get("inbound_nodes"), numbers)
        for name in ("input_layers", "output_layers"):
            config[name] = _placed(config.get(name), numbers)
    for name in ("name", "build_input_shape"):
        config.pop(name, None)
    if "batch_shape" in config:  # how many rows a model is first called with doesn't matter
        config["batch_shape"] = list(config["batch_shape"] or ())[1:]
    return dict(_flat("", config))


def _placed(nodes: Any, numbers: dict[str, int]) -> Any:
    """Where a model's tensors come from, with a layer's number in place of its name."""
    if isinstance(nodes, dict):
        if nodes.get("class_name") == "__keras_tensor__":
            nodes = nodes["config"]["keras_history"]
        else:
            return {name: _placed(value, numbers) for name, value in nodes.items()}
    if isinstance(nodes, (list, tuple)):
        return [_placed(value, numbers) for value in nodes]
    return numbers.get(nodes, nodes) if isinstance(nodes, str) else nodes


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every plain value in a configuration, under its path."""
    if isinstance(value, dict):
        kind = value.get("class_name")
        if kind is not None:  # a serialized object
            yield name, str(kind)
            value = value.get("config")
        if not isinstance(value, dict):
            yield from _flat(f"{name} config", value)
            return
        for key, item in value.items():
            # Numbered through; the seeds' states are variables; the code knows its file's path.
            automatic = key == "name" and not str(kind).endswith("Policy")
            if not automatic and key != "seed" and (kind, key) != ("__lambda__", "code"):
                yield from _flat(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from _flat(f"{name}[{number}]", item)
    elif value is not None:
        yield name, _text(value)


def _text(value: Any) -> str:
    """A plain value in words, of bounded length; of an object its name or class."""
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    elif hasattr(value, "__array__"):
        value = np.asarray(value).tolist()
    elif not isinstance(value, (str, int, float, list, tuple)):
        value = getattr(value, "__name__", type(value).__name__)
    text = re.sub(r" at 0x[0-9a-f]+", "", str(value))
    if len(text) > 200:
        text = f"{text[:100]}... (SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"
    return text


def _facts(model: keras.Model, source: Source, settings: dict[str, Any]) -> dict[str, str]:
    facts = {name: str(value) for name, value in settings.items()}
    facts["bitwise"] = str(runtime.is_bitwise())
    facts |= bitwise.facts() if runtime.is_bitwise() else {}
    facts |= source.describe()
    facts |= model_facts(model)
    for number, optimizer in enumerate(replicas.optimizers(model)):
        config = keras.saving.serialize_keras_object(optimizer)
        words = json.dumps(config, sort_keys=True, default=lambda o: type(o).__name__)
        facts[f"optimizer {number + 1}" if number else "optimizer"] = words
    facts["losses and metrics"] = " ".join(
        [
            f"{type(loss).__name__} {loss.name} {_settings(loss)}"
            for loss in keras_private.losses(model)
        ]
        + [f"{type(metric).__name__} {metric.name}" for metric in model.metrics]
    )
    facts["loss_weights"] = str(keras_private.loss_weights(model))
    return facts


def _settings(loss: Any) -> dict[str, Any]:
    """The plain numbers and words that a loss was made with."""
    plain = (bool, int, float, str)
    # Huber's get_config leaves out its delta.
    settings = {**loss.get_config(), **keras_private.function_settings(loss)}
    return {k: v for k, v in settings.items() if isinstance(v, plain)}
