"""Writes the initial weights that every contender starts from."""

import os

import keras
import numpy as np

from benchmarks.keras_models import untrained
from benchmarks.workloads import chosen

keras.utils.set_random_seed(1)
for name, workload in chosen().items():
    weights = untrained(name, workload).get_weights()
    np.savez(f"{os.environ['BENCH_FOLDER']}/{name}.npz", *weights)
