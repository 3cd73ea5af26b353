"""The same faults in a loop by hand over Horovod: `by_hand.py KIND PHASE RANK FOLDER`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import horovod.tensorflow as hvd
import tensorflow as tf

from tests.faults.strike import Strike


def main(kind: str, phase: str, rank: int, folder: Path) -> None:
    """Train as Horovod's examples do, until the fault strikes."""
    strike = Strike(kind, 1 if phase in ("launch", "start", "exit") else 4, folder / "note")
    mine = int(os.environ["OMPI_COMM_WORLD_RANK"])

    def at(moment: str) -> None:
        if mine == rank and phase == moment:
            strike()

    at("launch")
    hvd.init()
    at("start")
    weights = tf.Variable(tf.zeros([8, 1]))
    for step in range(30):
        at("data")
        x = tf.random.stateless_normal([10, 8], [step, hvd.rank()])
        with tf.GradientTape() as tape:
            at("step")
            loss = tf.reduce_mean((x @ weights - 1.0) ** 2)
        gradient = tape.gradient(loss, weights)
        at("reduction")
        weights.assign_sub(0.01 * hvd.allreduce(gradient, name="gradient"))
        at("callback")
    at("exit")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
