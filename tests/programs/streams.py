"""Trains on streams, by whoever reads them, and compares with Keras. Run by each worker of a job.

`streams.py BACKEND [CASE ...]` prints what differs, and `done` on rank 0.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from programs import compare
from programs.cases import sequential

import ddp_gd

# Dense gradients of a few rows each: the sums differ in the last digits only.
TOLERANCE = 5e-5
RANDOM = np.random.default_rng(8)
ROWS = RANDOM.normal(size=(91, 4)).astype("float32")
TARGETS = ROWS.sum(axis=1, keepdims=True)
WORDS = np.array([f"w{n % 7}" for n in range(91)])


def _dense() -> keras.Model:
    return sequential(layers.Dense(5, "tanh"), layers.Dense(1), optimizer="adam", metrics=["mae"])


def _simple() -> keras.Model:
    """Of an optimizer that doesn't look at `iterations`: Keras counts a step that finds no data."""
    return sequential(layers.Dense(5, "tanh"), layers.Dense(1))


def _sequences() -> keras.Model:
    layer = layers.LSTM(4)
    return sequential(layer, layers.Dense(1), shape=(None, 3), optimizer="adam")


def _texts() -> keras.Model:
    lookup = layers.StringLookup(vocabulary=[f"w{n}" for n in range(7)])
    inputs = keras.Input((), dtype="string")
    outputs = layers.Dense(1)(layers.Embedding(8, 3)(lookup(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    return model


def batches(forever: bool = True) -> Iterator[Any]:
    """Batches of 7 to 20 rows, with a weight for each."""
    random = np.random.default_rng(3)
    for _ in range(10**9 if forever else 8):
        rows = random.integers(0, len(ROWS), random.integers(7, 21))
        yield ROWS[rows], TARGETS[rows], random.uniform(0.5, 2, len(rows)).astype("float32")


def padded() -> Iterator[Any]:
    """Sequences of another length in each batch; some batches are of one row."""
    random = np.random.default_rng(4)
    while True:
        x = random.normal(size=(random.integers(1, 9), random.integers(3, 12), 3))
        yield x.astype("float32"), x.mean(axis=(1, 2), keepdims=True)[:, 0].astype("float32")


def pipeline(seed: int | None = 7) -> tf.data.Dataset:
    """A pipeline with a shuffle, a parallel map, repeated for ever."""
    data = tf.data.Dataset.from_tensor_slices((ROWS, TARGETS)).shuffle(50, seed=seed)
    data = data.map(lambda x, y: (x * 2.0, y + 1.0), num_parallel_calls=2)
    return data.repeat().batch(13).prefetch(2)


def finite() -> tf.data.Dataset:
    """Seven batches, the last of 1 row, in another order in each epoch."""
    return tf.data.Dataset.from_tensor_slices((ROWS, TARGETS)).shuffle(91, seed=3).batch(15)


def unknown() -> tf.data.Dataset:
    """A pipeline of which nobody knows how long it is."""
    return finite().unbatch().filter(lambda x, y: x[0] > -0.5).batch(9)


def lengths() -> tf.data.Dataset:
    """Padded batches: the second axis of each is as long as its longest sequence."""
    data = tf.data.Dataset.range(40).map(
        lambda n: (tf.ones([n % 5 + 1, 3]) * tf.cast(n, tf.float32) / 40.0, tf.ones([1]))
    )
    return data.padded_batch(6)


class Items(keras.utils.PyDataset):
    """Numbered mini-batches of different sizes, read in threads."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> Any:
        rows = slice(index * 9, index * 10 + 3)
        return ROWS[rows], TARGETS[rows]


def texts() -> tf.data.Dataset:
    """Batches of words."""
    return tf.data.Dataset.from_tensor_slices((WORDS, TARGETS)).batch(10)


Case = tuple[Callable[[], keras.Model], Callable[[], Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "generator": (_dense, batches, {"steps_per_epoch": 11, "epochs": 3}),
    "pipeline": (
        _dense, pipeline,
        {"steps_per_epoch": 9, "epochs": 3, "validation_data": pipeline, "validation_steps": 4},
    ),
    "finite": (_dense, finite, {"epochs": 3, "validation_data": finite}),
    "finite_in_steps": (_dense, finite, {"epochs": 5, "steps_per_epoch": 4}),
    "unknown": (_simple, unknown, {"epochs": 3}),
    "ends_in_mid_epoch": (_simple, lambda: batches(False), {"epochs": 3, "steps_per_epoch": 5}),
    "generator_ends": (_simple, lambda: batches(False), {"epochs": 2}),
    "padded": (_sequences, padded, {"steps_per_epoch": 6, "epochs": 2}),
    "padded_pipeline": (_sequences, lengths, {"epochs": 2}),
    "items": (_dense, Items, {"epochs": 2, "shuffle": False, "validation_data": Items}),
    "items_in_steps": (_dense, Items, {"epochs": 4, "shuffle": False, "steps_per_epoch": 4}),
    "threads": (_dense, lambda: Items(workers=3), {"epochs": 2, "shuffle": False}),
    "at_once": (
        lambda: sequential(layers.Dense(1), steps_per_execution=3), batches,
        {"steps_per_epoch": 7, "epochs": 2},
    ),
    "texts": (_texts, texts, {"epochs": 1}),
}  # fmt: skip


def outcome(name: str, fit: Callable[..., Any], **more: Any) -> compare.Outcome:
    """Train a case."""
    make, data, options = CASES[name]
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    model = make()
    made = {k: v() if k == "validation_data" else v for k, v in options.items()}
    history = fit(model, data(), verbose=0, **made, **more)
    return compare.outcome(model, history)


def unseeded() -> list[str]:
    """Of an unseeded shuffle every row comes once an epoch, and all workers train alike."""
    found = []
    x = np.arange(40, dtype="float32")[:, None] / 64
    seen: list[float] = []

    def note(value: np.ndarray) -> np.ndarray:
        seen.append(float(value[0]))
        return value

    data = tf.data.Dataset.from_tensor_slices((x, x)).shuffle(40)
    data = data.map(
        lambda a, b: (tf.ensure_shape(tf.numpy_function(note, [a], tf.float32), [1]), b)
    )
    model = sequential(layers.Dense(1), shape=(1,))
    ddp_gd.fit(model, data.batch(7), epochs=2, verbose=0)  # compares the workers after each epoch
    if ddp_gd.rank() == 0:
        epochs = [sorted(seen[:40]), sorted(seen[40:80])]
        if epochs != [x[:, 0].tolist()] * 2:
            found.append(f"unseeded: rows {epochs}")
    elif seen:
        found.append(f"unseeded: rank {ddp_gd.rank()} read {len(seen)} rows")
    return found


def predicted() -> list[str]:
    """Predictions and evaluations of streams are Keras's."""
    found = []
    keras.utils.set_random_seed(3)
    model = _dense()
    for name, make, options in (
        ("finite", lambda: unknown(), {}),
        ("endless", batches, {"steps": 5}),
        ("items", Items, {}),
    ):
        if ddp_gd.rank() == 0:
            expected = model.predict(make(), verbose=0, **options)
            metrics = model.evaluate(make(), verbose=0, return_dict=True, **options)
        outputs = ddp_gd.predict(model, make(), verbose=0, **options)
        results = ddp_gd.evaluate(model, make(), verbose=0, **options)
        if ddp_gd.rank() == 0:
            if outputs.shape != expected.shape or np.abs(outputs - expected).max() > 1e-5:
                found.append(f"predict {name}: {outputs.shape} for {expected.shape}")
            if any(abs(results[k] - metrics[k]) > 1e-4 for k in metrics):
                found.append(f"evaluate {name}: {results} for {metrics}")
    found += predicted_lengths()
    return found


def predicted_lengths() -> list[str]:
    """Outputs that are longer in one mini-batch than in the next are ragged, as Keras's are."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((None, 3)), layers.Dense(2)])
    found = []
    for data in (lengths(), np.ones((7, 4, 3), "float32")):
        expected, outputs = model.predict(data, verbose=0), ddp_gd.predict(model, data, verbose=0)
        if type(outputs) is not type(expected) or outputs.shape[:2] != expected.shape[:2]:
            found.append(f"predict lengths: {outputs!r} for {expected!r}")
        elif isinstance(expected, tf.RaggedTensor):
            expected, outputs = expected.to_tensor(), outputs.to_tensor()
        if not found and np.abs(outputs - expected).max() > 1e-5:
            found.append("predict lengths: other outputs")
    return found


MORE = {"unseeded": unseeded, "predicted": predicted}


def main(backend: str, names: list[str]) -> None:
    """Run the cases."""
    warnings.filterwarnings("ignore")
    ddp_gd.init(backend=backend.split(",")[0], bitwise=backend.endswith(",bitwise"))
    found = []
    for name in [name for name in names or CASES if name not in MORE]:
        began = time.perf_counter()
        # Every worker, so that none waits for rank 0 alone in Keras.
        expected = outcome(name, keras.Model.fit)
        actual = outcome(name, ddp_gd.fit)
        if CASES[name][0] is _simple:
            assert actual.arrays.pop("optimizer variable 4") < expected.arrays.pop(
                "optimizer variable 4"
            )
        different = compare.differences(expected, actual, TOLERANCE)
        if name == "pipeline":
            again = outcome(name, ddp_gd.fit, read="every worker")
            different += compare.differences(expected, again, TOLERANCE)
        found += [f"{name}: {text}" for text in different]
        if "-v" in sys.argv and ddp_gd.rank() == 0:
            most = max(compare.distances(expected, actual).values())
            seconds = time.perf_counter() - began
            print(f"{name}: {seconds:.1f} s, {most:.2g} from Keras, {different}", flush=True)
    for name in [name for name in names or MORE if name in MORE]:
        found += MORE[name]()
    if found:
        raise SystemExit(f"rank {ddp_gd.rank()}: " + "\n".join(found))
    if ddp_gd.rank() == 0:
        print("done")


if __name__ == "__main__":
    main(sys.argv[1], [name for name in sys.argv[2:] if name != "-v"])
