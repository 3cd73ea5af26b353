"""What equal bits depend on beside the training itself: set by `init`, recorded, checked.

Floating-point kernels choose their order of additions by the processor, by their thread count and
by TensorFlow's settings. In bitwise mode all of that is fixed, recorded with every run, and must
be the same on every worker.
"""

from __future__ import annotations

import hashlib
import os
from importlib import metadata
from pathlib import Path

import keras
import tensorflow as tf

from ddp_gd.comm import Communicator
from ddp_gd.errors import ConfigError
from ddp_gd.job import threads
from ddp_gd.job.threads import user_set


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


def fix(communicator: Communicator) -> None:
    """Fix what changes the bits of a micro-batch or of a sum.

    Raises:
        ConfigError: TensorFlow runs already, so its threads are what they are.
    """
    config = tf.config.threading
    try:
        config.set_intra_op_parallelism_threads(1)
        # Several micro-batches at once: that changes no bits.
        if not (config.get_inter_op_parallelism_threads() or user_set("INTEROP")):
            config.set_inter_op_parallelism_threads(threads.for_worker(communicator.local_size))
    except RuntimeError:
        raise ConfigError(
            "bitwise=True fixes TensorFlow's threads, but TensorFlow has started already: "
            "call ddp_gd.init() before any TensorFlow op."
        ) from None
    # It would re-order trees of additions, in one graph so and in the next one otherwise.
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    tf.config.experimental.enable_op_determinism()
