"""What equal bits depend on beside the training itself: it is fixed, recorded and checked.

Floating-point kernels choose their order of additions by the processor, by their thread count and
by TensorFlow's settings. In bitwise mode all of that is fixed, recorded with every run, and must
be the same on every worker.
"""

import hashlib
import os
from pathlib import Path

import keras
import tensorflow as tf

from ddp_gd.errors import ConfigError
from ddp_gd.job import threads
from ddp_gd.job.versions import version


def fix_bits(local_size: int) -> None:
    """Fix what changes the bits of a micro-batch or of a sum, before TensorFlow's first op.

    Args:
        local_size: workers on this host.

    Raises:
        ConfigError: TensorFlow runs already, so its threads are what they are.
    """
    try:
        # Several micro-batches at once: that changes no bits.
        threads.set_for_worker(local_size, intra_op=1)
    except RuntimeError:
        raise ConfigError(
            "bitwise=True fixes TensorFlow's threads, but TensorFlow has started already: "
            "call ddp_gd.init() before any TensorFlow op."
        ) from None
    # It would re-order trees of additions, in one graph so and in the next one otherwise.
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    tf.config.experimental.enable_op_determinism()


def facts() -> dict[str, str]:
    """Return what the bits depend on, in words: runs can be equal only if all of it is."""
    options = tf.config.optimizer.get_experimental_options()
    prefixes = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_", "DNNL_")
    one_dnn = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(prefixes)}
    return {
        "processor": _processor(),
        "tensorflow": version("tensorflow"),
        "keras": version("keras"),
        "numpy": version("numpy"),
        "oneDNN settings": str(one_dnn or "default"),
        "floatx": keras.config.floatx(),
        "intra-op threads": str(tf.config.threading.get_intra_op_parallelism_threads()),
        "graph rewriting (arithmetic_optimization)": str(
            options.get("arithmetic_optimization", True)
        ),
    }


def require_preconditions() -> None:
    """Stop where something was changed after `fix_bits`.

    Raises:
        ConfigError: naming the setting.
    """
    used = tf.config.threading.get_intra_op_parallelism_threads()
    options = tf.config.optimizer.get_experimental_options()
    if used != 1:
        problem = f"TensorFlow uses {used} intra-op threads, and their number changes the bits"
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


def _processor() -> str:
    """The model and a hash of the flags: kernels are chosen by them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    pairs = (line.partition(":") for line in reversed(lines))  # the first processor's are last
    entries = {name.strip(): value.strip() for name, _, value in pairs}
    flags = " ".join(sorted(entries.get("flags", "").split()))
    digest = hashlib.sha256(flags.encode()).hexdigest()[:8]
    return f"{entries.get('model name', 'unknown')}, flags {digest}"
