"""What a checkpoint every second costs: python -m benchmarks.saving, in the set-up environment.

The CNN of the benchmark, in one process and with and without checkpoints in turns; prints the
median of the pairs' ratios and its interval.
"""

from __future__ import annotations

import tempfile

import ddp_gd
from benchmarks.bench import interval
from benchmarks.keras_models import EpochSeconds, untrained
from benchmarks.workloads import WORKLOADS

# Many short pairs: the speed of a shared machine changes from one minute to the next.
PAIRS = 21
EPOCHS = 5  # about three seconds


def main() -> None:
    """Measure."""
    ddp_gd.init()
    workload = WORKLOADS["cnn"]
    x, y = workload.data()
    ratios = []
    for number in range(PAIRS):
        seconds = {}
        for saves in (False, True) if number % 2 else (True, False):
            model = untrained("cnn", workload)
            model.compile("sgd", "sparse_categorical_crossentropy")
            clock = EpochSeconds()
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = ddp_gd.Checkpoint(folder, every_seconds=1) if saves else None
                ddp_gd.fit(
                    model,
                    x,
                    y,
                    batch_size=workload.batch_size,
                    epochs=EPOCHS,
                    verbose=0,
                    callbacks=[clock],
                    checkpoint=checkpoint,
                )
            seconds[saves] = sum(clock.seconds)
        ratios.append(seconds[True] / seconds[False])
        print(f"{seconds[False]:.2f} s without, {seconds[True]:.2f} s with", flush=True)
    middle, low, high = interval(ratios)
    print(f"with a checkpoint every second {middle:.3f} times as long ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
