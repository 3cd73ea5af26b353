"""Which GPU a worker computes on: one of its own."""

import tensorflow as tf

from ddp_gd.errors import ConfigError


def take_one(local_rank: int, local_size: int, bitwise: bool) -> None:
    """Give this worker the GPU of its number on its host, and only the memory that it needs.

    Without GPUs nothing happens. Call it before TensorFlow's first op.

    Args:
        local_rank: this worker's number among those of its host.
        local_size: how many there are.
        bitwise: whether results shall be equal bit for bit.

    Raises:
        ConfigError: fewer GPUs than workers; GPUs where bits are promised; or TensorFlow has
            started on the GPUs already.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return
    if bitwise:
        raise ConfigError(
            f"bitwise=True is a promise about CPUs, and TensorFlow sees {_count(gpus)}. Set "
            "CUDA_VISIBLE_DEVICES=-1 to train on CPUs, or leave bitwise out."
        )
    if len(gpus) == 1:
        gpu = gpus[0]  # of this worker alone, where the launcher deals them out, as Slurm can
    elif local_size <= len(gpus):
        gpu = gpus[local_rank]
    else:
        raise ConfigError(
            f"{local_size} workers on a host with {_count(gpus)}: each needs one of its own. Start "
            f"{len(gpus)} there (launch/multi_gpu.sh does), or set CUDA_VISIBLE_DEVICES=-1 to "
            "train on CPUs."
        )
    try:
        tf.config.set_visible_devices(gpu, "GPU")
        # Otherwise TensorFlow takes all of that GPU's memory, and other programs have none.
        tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:
        raise ConfigError(
            f"each worker computes on one GPU, but TensorFlow has started on {_count(gpus)} "
            "already: call ddp_gd.init() before any TensorFlow op."
        ) from error


def _count(gpus: list[tf.config.PhysicalDevice]) -> str:
    return f"{len(gpus)} GPU{'s' * (len(gpus) != 1)}"
