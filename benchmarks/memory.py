"""What a worker needs beside its model: python -m benchmarks.memory WEIGHTS default|bitwise.

Prints the most resident memory, in bytes, that `fit` ever held on any worker, beyond what was
resident when it began. Two sizes tell how it grows (`bench.py`).
"""

import sys

import keras
import numpy as np

import ddp_gd
from ddp_gd.comm.agree import gather_json
from ddp_gd.job.runtime import communicator

weights, mode = int(sys.argv[1]), sys.argv[2]
ddp_gd.init(bitwise=mode == "bitwise")


def status(name: str) -> int:
    """A line of this process's status, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


width = round((weights / 4) ** 0.5)
model = keras.Sequential(
    [keras.Input((width,)), *(keras.layers.Dense(width, "relu") for _ in range(4))]
)
model.compile(keras.optimizers.SGD(0.01), "mse")
x = np.random.default_rng(0).normal(size=(64, width)).astype(np.float32)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak until now
before = status("VmRSS")
ddp_gd.fit(model, x, x, batch_size=16, epochs=3, verbose=0)
everyone = gather_json(communicator(), status("VmHWM") - before)
if ddp_gd.rank() == 0:
    print(f"bytes {max(everyone)} gradient {4 * model.count_params()}")
