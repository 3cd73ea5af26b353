"""What the bits of a result depend on beside the training itself, and its check.

Floating-point kernels choose their order of additions by the processor, by their thread count and
by TensorFlow's settings. In bitwise mode all of that is fixed, recorded with every run, and must
be the same on every worker.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from .errors import ConfigError, ModelError

# Kernels that draw from a generator of the process: another worker would draw other numbers.
_RANDOM_OPS = re.compile(
    r"^(Parameterized|Stateful(Uniform|Standard|Truncated|Random)|Random(?!Index)|Multinomial"
    r"|Truncated|Rng)"
)
_WRITES = re.compile(r"^(Assign.*VariableOp|ResourceScatter.*)$")


def facts() -> dict[str, str]:
    """What the bits depend on, in words: two runs can be equal bit for bit only if these are."""
    options = tf.config.optimizer.get_experimental_options()
    one_dnn = {name: os.environ[name] for name in sorted(os.environ) if _is_onednn(name)}
    return {
        "processor": _processor(),
        "tensorflow": metadata.version("tensorflow"),
        "keras": metadata.version("keras"),
        "numpy": metadata.version("numpy"),
        "oneDNN settings": str(one_dnn or "default"),
        "floatx": keras.config.floatx(),
        "intra-op threads": str(tf.config.threading.get_intra_op_parallelism_threads()),
        "graph rewriting (arithmetic_optimization)": str(
            options.get("arithmetic_optimization", True)
        ),
    }


def require_preconditions() -> None:
    """Stop where something was changed after `init(bitwise=True)` had set it.

    Raises:
        ConfigError: naming the setting.
    """
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    options = tf.config.optimizer.get_experimental_options()
    if threads != 1:
        problem = f"TensorFlow uses {threads} intra-op threads, and their number changes the bits"
    elif options.get("arithmetic_optimization", True):
        problem = "graph rewriting (arithmetic_optimization) is on, and it re-orders additions"
    elif tf.config.optimizer.get_jit():
        problem = "XLA is on (tf.config.optimizer.set_jit), and it chooses orders of its own"
    else:
        return
    raise ConfigError(
        f"Bitwise mode can't start: {problem}. ddp_gd.init(bitwise=True) sets what is needed; "
        "leave these settings alone after it."
    )


def require_tracked_state(function: Any) -> None:
    """Refuse a forward pass that writes to variables behind Keras's back.

    Raises:
        ModelError: naming the operation.
    """
    for operation in operations(function):
        if _WRITES.match(operation.type):
            raise ModelError(
                f"{operation.name!r} in the model writes to a tf.Variable itself, and what several "
                "workers or micro-batches write can't be put together. Make the variable with the "
                "layer's add_weight() and assign to that."
            )


def require_deterministic(function: Any) -> None:
    """Refuse a forward pass that draws random numbers which Keras's seeds don't decide.

    Raises:
        ModelError: naming the operation.
    """
    for operation in operations(function):
        if _RANDOM_OPS.match(operation.type):
            raise ModelError(
                f"{operation.name!r} ({operation.type}) in the model draws random numbers from "
                "TensorFlow's own generator, which differs from worker to worker. Bitwise mode "
                "needs keras.random with a keras.random.SeedGenerator."
            )


def constant_seeds(function: Any) -> list[str]:
    """Names of the operations that draw random numbers by a seed written into the graph.

    The seeds of Keras's layers are inputs of the graph; one written into it was made by the
    program itself, and may be another one on every worker.
    """
    return [
        operation.name
        for operation in operations(function)
        if operation.type == "StatelessRandomGetKeyCounter" and not _has_input(operation)
    ]


def _has_input(operation: Any) -> bool:
    """Tell whether what an operation computes depends on an input of its graph."""
    todo, seen = [operation], set()
    while todo:
        current = todo.pop()
        if current.type == "Placeholder":
            return True
        todo += [tensor.op for tensor in current.inputs if tensor.op.name not in seen]
        seen |= {tensor.op.name for tensor in current.inputs}
    return False


def operations(function: Any) -> Iterable[Any]:
    """All operations of a concrete function's graph, and of the functions that it calls."""
    graphs = [function.graph]
    while graphs:
        graph = graphs.pop()
        yield from graph.get_operations()
        for atomic in graph._functions.values():
            if (inner := getattr(atomic, "graph", None)) is not None:
                graphs.append(inner)


def _is_onednn(name: str) -> bool:
    return name == "TF_ENABLE_ONEDNN_OPTS" or name.startswith(("ONEDNN_", "DNNL_"))


def _processor() -> str:
    """Model and a hash of the flags: kernels are chosen by them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    entries: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        entries.setdefault(name.strip(), value.strip())
    flags = " ".join(sorted(entries.get("flags", "").split()))
    digest = hashlib.sha256(flags.encode()).hexdigest()[:8]
    return f"{entries.get('model name', 'unknown')}, flags {digest}"
