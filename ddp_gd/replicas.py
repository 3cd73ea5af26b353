"""One model on every worker: built, compared with rank 0's, given rank 0's values, checked."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import bits, runtime
from .arrays import Signature
from .comm.base import Communicator
from .errors import ConfigError, NumericsError, ReplicaError
from .loop import Source
from .state import global_seed, non_trainable_variables


def fingerprint(model: keras.Model) -> str:
    """SHA-256 over the trainable and then the non-trainable variables, in model order.

    Each enters with its dtype, its shape and its little-endian bytes, so equal fingerprints mean
    equal bits.

    Args:
        model: built.

    Returns:
        64 hexadecimal digits.
    """
    return _digest([*model.trainable_variables, *model.non_trainable_variables]).hex()


def build(model: keras.Model, signature: Signature) -> None:
    """Create every variable of the model, its metrics and its optimizer, as `fit` would.

    Raises:
        ConfigError: the model isn't compiled.
        ValueError: Keras's own, when the data don't fit the model.
    """
    if not model.compiled:
        raise ConfigError("The model is not compiled; call model.compile(optimizer, loss) first.")
    specs = [keras.KerasTensor(spec.shape, spec.dtype.name) for spec in signature.specs]
    model._symbolic_build(data_batch=signature.unpack(specs))


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
        bits.require_preconditions()
    facts = _facts(model, source, settings)
    if communicator.size > 1:
        runtime.agree(communicator, facts)
    return facts


def model_facts(model: keras.Model) -> dict[str, str]:
    """The class of the model, every variable, and what each layer was made with, in words."""
    facts = {"model": f"{type(model).__name__} {model.name}"}
    for kind in ("trainable_variables", "non_trainable_variables"):
        for number, v in enumerate(getattr(model, kind)):
            facts[f"model.{kind}[{number}]"] = f"{v.path} {v.dtype}{list(v.shape)}"
    for number, layer in enumerate(model._flatten_layers()):  # the first is the model
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
        listed = {sub.name for sub in layer._layers}  # they speak for themselves
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
    facts |= bits.facts() if runtime.is_bitwise() else {}
    facts |= source.describe()
    facts |= model_facts(model)
    config = keras.saving.serialize_keras_object(model.optimizer)
    facts["optimizer"] = json.dumps(config, sort_keys=True, default=lambda o: type(o).__name__)
    facts["losses and metrics"] = " ".join(
        [f"{type(loss).__name__} {loss.name} {_settings(loss)}" for loss in _losses(model)]
        + [f"{type(metric).__name__} {metric.name}" for metric in model.metrics]
    )
    compiled = model._compile_loss
    facts["loss_weights"] = str(compiled._user_loss_weights if compiled is not None else None)
    return facts


def shared_seed(communicator: Communicator, seed: int | None) -> int:
    """The seed that was given, or one that rank 0 draws from NumPy's global generator."""
    if seed is not None:
        if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
            raise ConfigError(f"seed={seed!r} must be a whole number from 0 to 2**63 - 1.")
        return int(seed)
    # Every worker draws, so that the generators stay in step with each other.
    drawn = tf.constant(np.random.randint(2**31), tf.int64)
    return int(communicator.broadcast([drawn])[0])


def synchronize(
    communicator: Communicator, model: keras.Model, with_optimizer: bool = True
) -> None:
    """Give every worker rank 0's weights, other state and optimizer state."""
    if communicator.size == 1:
        return
    mine = variables(model, with_optimizer)
    if from_rank_0(communicator, global_seed() is not None):  # something may have drawn there alone
        mine.append(global_seed(make=True))
    values = [tf.convert_to_tensor(v.value) for v in mine]
    for variable, value in zip(mine, communicator.broadcast(values), strict=True):
        variable.assign(value)


def check(
    communicator: Communicator, model: keras.Model, draws_globally: bool, since: str, now: str
) -> None:
    """Compare the workers' copies of the model and the optimizer, bit for bit.

    Args:
        communicator: the workers.
        model: its copy on this worker.
        draws_globally: whether it draws from Keras's global generator. Otherwise that is the
            user's, who may draw from it on some workers only.
        since: when they were last found the same, "epoch 2".
        now: what has just been made, "epoch 3".

    Raises:
        ReplicaError: on every worker, naming the ranks that differ from the others.
    """
    if communicator.size == 1:
        return
    compared = [*variables(model), *([global_seed()] if draws_globally else [])]
    own = np.frombuffer(_digest(compared), np.uint8)
    digests = communicator.allgather(tf.constant(own[None])).numpy()  # (workers, 32)
    ranks: dict[bytes, list[int]] = {}
    for rank, row in enumerate(digests):
        ranks.setdefault(row.tobytes(), []).append(rank)
    if len(ranks) == 1:
        return
    *few, most = sorted(ranks.values(), key=len)
    if 2 * len(most) > len(digests):
        parted = ", ".join(str(rank) for group in few for rank in group)
        text = f"rank {parted} no longer has the same bits as the others'"
    else:
        groups = " and ".join(", ".join(map(str, group)) for group in sorted(ranks.values()))
        text = f"ranks {groups} are no longer the same bits, and no majority tells which are right"
    raise ReplicaError(
        f"After {now} the model or optimizer of {text}: a callback that changes weights on some "
        f"workers only, or a memory error. They were the same after {since}. Remove the "
        "checkpoints that were saved later, and go on from the last one before."
    )


def require_finite(model: keras.Model, now: str) -> None:
    """Refuse to go on with, or to save, weights that are not numbers.

    Raises:
        NumericsError: quoting `now`, what has just been made.
    """
    for weight in model.trainable_variables:
        if not bool(tf.reduce_all(tf.math.is_finite(weight.value))):
            raise NumericsError(
                f"After {now} the weight {weight.path} is NaN or infinite: a gradient was, or the "
                "learning rate is too high. Lower it, or clip the gradient (global_clipnorm); a "
                "checkpoint that was saved before can be gone on with."
            )


def any_worker(communicator: Communicator, flag: bool) -> bool:
    """Tell whether `flag` is true on any worker."""
    if communicator.size == 1:
        return flag
    return bool(communicator.allreduce_sum([tf.constant(int(flag))])[0])


def from_rank_0(communicator: Communicator, number: int) -> int:
    """Rank 0's number, on every worker."""
    return int(communicator.broadcast([tf.constant(number, tf.int64)])[0])


def variables(model: keras.Model, with_optimizer: bool = True) -> list[Any]:
    """What training changes and all workers agree on, in a fixed order: weights to optimizer.

    Keras's global seed isn't among them: it may come into being at any time.
    """
    optimizer = model.optimizer.variables if with_optimizer else []
    return [*model.trainable_variables, *non_trainable_variables(model), *optimizer]


def _digest(variables: list[Any]) -> bytes:
    digest = hashlib.sha256()
    for variable in variables:
        value = np.ascontiguousarray(variable.value.numpy())
        digest.update(f"{value.dtype.name}{list(value.shape)}".encode())
        value = value.astype(value.dtype.newbyteorder("<"), copy=False)
        digest.update(value.reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer of its own
    return digest.digest()


def _settings(loss: Any) -> dict[str, Any]:
    """The plain numbers and words that a loss was made with."""
    plain = (bool, int, float, str)
    # Huber's get_config leaves out its delta.
    settings = {**loss.get_config(), **getattr(loss, "_fn_kwargs", {})}
    return {k: v for k, v in settings.items() if isinstance(v, plain)}


def _losses(model: keras.Model) -> list[Any]:
    compiled = model._compile_loss
    return [] if compiled is None else [entry.loss for entry in compiled._flat_losses]
