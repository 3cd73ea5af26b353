"""Data sets of mini-batches, and `predict`, in a job; rank 0 compares with Keras.

Usage: python -m programs.datasets BACKEND[,bitwise] OUT.json

OUT.json is what the trainings and predictions left, as hashes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from programs import compare
from programs.behaviour import raises
from programs.cases import sequential
from programs.items import ITEMS, KINDS, Listed, Reordering, X, Y, elements, reshuffled

import ddp_gd
from ddp_gd.training import predict as predict_module

FIT = {"shuffle": False, "verbose": 0}
EVERY = {"read": "every worker"}


def network(*extra: Any) -> keras.Model:
    """A small compiled model, the same each time."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    return sequential(layers.Dense(3, "tanh"), *extra, layers.Dense(1), optimizer="adam")


def trainings() -> dict[str, str]:
    """Train on both kinds of data sets; return the fingerprints."""
    left = {}
    for kind, micro_batch_size in (("tf.data", None), ("threads", 2)):
        make = KINDS[kind]
        model = network()
        history = ddp_gd.fit(
            model, make(), epochs=2, validation_data=make(), **FIT,
            micro_batch_size=micro_batch_size,
        )  # fmt: skip
        actual = compare.outcome(model, history)
        evaluated = ddp_gd.evaluate(model, make(), verbose=0)
        left[kind] = f"{ddp_gd.fingerprint(model)} {evaluated}"
        if ddp_gd.rank() == 0:
            model = network()
            history = model.fit(make(), epochs=2, validation_data=make(), **FIT)
            wrong = compare.differences(compare.outcome(model, history), actual)
            assert wrong == [], (kind, wrong)
            wanted = model.evaluate(make(), verbose=0, return_dict=True)
            np.testing.assert_allclose(list(evaluated.values()), list(wanted.values()), rtol=1e-5)
    for name, make in {"reordering": Reordering, "reshuffled": reshuffled}.items():
        model = network(layers.Dropout(0.3))
        history = ddp_gd.fit(model, make(), epochs=3, verbose=0, seed=1, micro_batch_size=2)
        left[name] = f"{ddp_gd.fingerprint(model)} {history.history}"
    return left


def mismatches() -> None:
    """Different items are named before any worker computes one of them."""
    odd = ddp_gd.rank() == 1
    steps = [(x + 1, y, w) if odd and i == 1 else (x, y, w) for i, (x, y, w) in enumerate(ITEMS)]
    rows = [*ITEMS[:2], (X[5 + odd :], Y[5 + odd :], ITEMS[0][2][:1].repeat(8 - odd))]
    broken = [*ITEMS[:2], (X[:3], Y[: 3 - odd], None)]
    for items, step, quoted in (
        (Listed(steps), 2, ["rank 1 read 1 rows with SHA-256"]),
        (elements(rows), 3, ["rank 1 read 7 rows"]),
    ):
        model = network()
        texts = [f"different mini-batches for step {step} of epoch 1", f" {step - 1} of the "]
        with raises(ddp_gd.MismatchError, *texts, *quoted):
            ddp_gd.fit(model, items, **FIT, **EVERY)
        assert int(model.optimizer.iterations) == step - 1
    with raises(ddp_gd.MismatchError, "step 2 of an evaluation", "item 1 of the PyDataset"):
        ddp_gd.evaluate(network(), Listed(steps), verbose=0, **EVERY)
    with raises(ddp_gd.MismatchError, "item 2", "rank 1 read no mini-batch", "y: 2"):
        ddp_gd.fit(network(), Listed(broken), **FIT, **EVERY)
    with raises(ddp_gd.DataError, "item 2 of the PyDataset", "y: 2"):  # the same on every worker
        ddp_gd.fit(network(), Listed([*ITEMS[:2], (X[:3], Y[:2], None)]), **FIT, **EVERY)
    with raises(ddp_gd.DataError, "item 2 of the PyDataset", "y: 2"):  # read by one of them
        ddp_gd.fit(network(), Listed([*ITEMS[:2], (X[:3], Y[:2], None)]), **FIT)
    with raises(ddp_gd.MismatchError, "data: rank 0 has ", "2 mini-batches", "rank 1"):
        ddp_gd.fit(network(), Listed(ITEMS[: 3 - odd]), **FIT)
    with raises(ddp_gd.MismatchError, "x: rank 0 has 'PyDataset'", "rank 1 'arrays'"):
        ddp_gd.fit(network(), *((X, Y) if odd else (Listed(),)), **FIT)
    unseeded = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(13, seed=ddp_gd.rank()).batch(4)
    with raises(ddp_gd.MismatchError, "step 1 of epoch 1", "Dataset.shuffle(seed="):
        ddp_gd.fit(network(), unseeded, verbose=0, **EVERY)
    with raises(ddp_gd.MismatchError, "element 0", "Dataset.shuffle"):
        ddp_gd.predict(network(), unseeded.map(lambda x, _: x), verbose=0, **EVERY)
    with raises(ddp_gd.MismatchError, "batch_size: rank 0 has '4'", "rank 1 '5'"):
        ddp_gd.predict(network(), X, 4 + odd, verbose=0)


def not_a_number() -> None:
    """NaN names the item, and the worker whose rows have it."""
    x = X.copy()
    x[6] = np.nan  # the first row of the last item
    items = [*ITEMS[:2], (x[6:], *ITEMS[2][1:])]
    last = -(-7 // ddp_gd.size()) - 1
    with raises(
        ddp_gd.NumericsError, "step 3 of 3, on rank 0 (",
        f"rows: 0 to {last} of item 2 of the PyDataset",
    ):  # fmt: skip
        ddp_gd.fit(network(), Listed(items), **FIT)


def predictions() -> dict[str, str]:
    """Predict with uneven and empty parts; return hashes."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4,))
    hidden = layers.BatchNormalization()(layers.Dense(3, "tanh")(inputs))
    shared = keras.Model(inputs, {"a": hidden, "b": [keras.ops.argmax(hidden, -1)]})
    if ddp_gd.rank() > 0:  # rank 0's weights are meant
        shared.set_weights([w + 1 for w in shared.get_weights()])
    left = {}
    alone = [x for x, _, _ in ITEMS]
    for name, x, options in (
        ("one row each", X, {"batch_size": 1}),
        ("four mini-batches", X, {"batch_size": 4}),
        ("two mini-batches", X, {"batch_size": 12}),
        ("one mini-batch", X, {}),
        ("PyDataset", Listed(alone), {}),
        ("threads", Listed(ITEMS, workers=3), {}),
        ("tf.data", elements([[x] for x in alone]), {}),
    ):
        found = ddp_gd.predict(shared, x, verbose=0, **options)
        predict_module._BYTES_PER_EXCHANGE, whole = 40, predict_module._BYTES_PER_EXCHANGE
        again = ddp_gd.predict(shared, x, verbose=0, **options)
        predict_module._BYTES_PER_EXCHANGE = whole
        keras.tree.map_structure(np.testing.assert_array_equal, found, again)
        digest = hashlib.sha256(found["a"].tobytes() + found["b"][0].tobytes()).hexdigest()
        left[name] = f"{digest} {found['a'].shape} {found['b'][0].dtype}"
        if ddp_gd.rank() == 0:
            wanted = shared.predict(x, verbose=0, **options)
            np.testing.assert_allclose(found["a"], wanted["a"], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(found["b"][0], wanted["b"][0])
    return left


def main(backend: str, out: Path) -> None:
    """Do all of it; every worker must have found the same."""
    backend, _, mode = backend.partition(",")
    ddp_gd.init(backend, bitwise=mode == "bitwise")
    left = trainings() | predictions()
    not_a_number()
    if ddp_gd.size() > 1:
        mismatches()
        out.with_suffix(f".{ddp_gd.rank()}").write_text(json.dumps(left))
        ddp_gd.fit(network(), Listed(), verbose=0)  # every worker has written
        assert json.loads(out.with_suffix(".1").read_text()) == left
    if ddp_gd.rank() == 0:
        out.write_text(json.dumps(left))
        print("passed")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
