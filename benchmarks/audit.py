"""What an audit costs: mpirun -np 2 python -m benchmarks.audit, in the set-up environment.

The MLP and the CNN of the benchmark in bitwise mode, an epoch with and one without an audit in
turns, in one job; prints the median of the pairs' ratios and its interval.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import keras

import ddp_gd
from benchmarks.bench import interval
from benchmarks.keras_models import untrained
from benchmarks.workloads import WORKLOADS
from ddp_gd.batching import sources
from ddp_gd.batching.source import Source
from ddp_gd.job import runtime
from ddp_gd.training import audit, identity, replicas
from ddp_gd.training.loop import open_loop

_NAMES = ("mlp", "cnn", "wide")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--part", type=float, default=0.05, help="audited (default: 0.05)")
    parser.add_argument("--pairs", type=int, default=21, help="of epochs (default: 21)")
    parser.add_argument("--workloads", nargs="+", default=["mlp", "cnn"], choices=_NAMES)
    options = parser.parse_args()
    ddp_gd.init(bitwise=True)
    for name in options.workloads:
        without, with_audit = _epochs(name, 0.0), _epochs(name, options.part)
        for warm_up in (0, 1):
            without(warm_up), with_audit(warm_up)
        ratios, seconds = [], []
        for pair in range(2, 2 + options.pairs):
            # In turns, and in turns first.
            order = (without, with_audit) if pair % 2 else (with_audit, without)
            took = {run: run(pair) for run in order}
            ratios.append(took[with_audit] / took[without])
            seconds.append(took[without])
        middle, low, high = interval(ratios)
        if ddp_gd.rank() == 0:
            workload = WORKLOADS[name]
            print(
                f"{workload.title}, {ddp_gd.size()} workers, {interval(seconds)[0]:.2f} s an "
                f"epoch: an audit of {options.part:g} takes {middle:.3f} times as long "
                f"({low:.3f} to {high:.3f}, {options.pairs} pairs)",
                flush=True,
            )


def _epochs(name: str, part: float) -> Callable[[int], float]:
    """A training of which an epoch can be made at a time; returns its seconds."""
    workload, communicator = WORKLOADS[name], runtime.communicator()
    x, y = workload.data()
    model = untrained(name, workload)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    source: Source = sources.for_training(
        communicator, (x, y, None), None, workload.batch_size, None, True, 1
    )
    identity.build(model, source.signature)
    replicas.synchronize(communicator, model)
    audit.arrange(communicator, source, part)
    loop = open_loop(communicator, model, source, stop_on_nan=False, training=True)
    loop.reset()

    def run(epoch: int) -> float:
        communicator.barrier()
        began = time.perf_counter()
        for first, stop in loop.calls(epoch):
            loop.run(first, stop)
        loop.end_epoch()
        communicator.barrier()
        return time.perf_counter() - began

    return run


if __name__ == "__main__":
    main()
