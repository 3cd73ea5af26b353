"""Trains the models that bitwise mode must get right; rank 0 writes what each left as JSON.

    python bitwise.py OUT.json [one|few|most|all]

`few` gives each model but those that are part of another one optimizer and one batch size, `one` is
one of those, `most` gives each model every optimizer and every batch size once, `all` every
combination. The backend comes from the variable BACKEND, the part that is audited from AUDIT,
inter-op threads from TF_NUM_INTEROP_THREADS, and how many bytes are exchanged at once from
EXCHANGED_AT_ONCE.
"""

import gc
import hashlib
import json
import os
import sys

import keras
import numpy as np
from keras import layers

import ddp_gd
from ddp_gd.steps import reduction
from ddp_gd.training.replicas import _digest

gc.freeze()  # see cases.py
ROWS = 211


def _dense(units):
    def build():
        hidden = [layers.Dense(u, activation="relu", kernel_regularizer="l2") for u in units]
        model = keras.Sequential([keras.Input((13,)), *hidden, layers.Dense(1)])
        return model, "mse", ["mae"]

    return build


def _cnn():
    return (
        keras.Sequential(
            [
                keras.Input((12, 12, 1)),
                layers.Conv2D(8, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Conv2D(16, 3, activation="relu"),
                layers.Flatten(),
                layers.Dense(5),
            ]
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ["accuracy"],
    )


def _cnn_statistics():
    return (
        keras.Sequential(
            [
                keras.Input((12, 12, 1)),
                layers.Conv2D(8, 3),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.MaxPooling2D(),
                layers.Dropout(0.3),
                layers.Conv2D(16, 3, activation="relu"),
                layers.GaussianNoise(0.1),
                layers.Flatten(),
                layers.Dense(5),
            ]
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ["accuracy"],
    )


def _lstm():
    model = keras.Sequential(
        [
            keras.Input((7, 4)),
            layers.Masking(),
            layers.LSTM(8, return_sequences=True),
            layers.Dense(3),
        ]
    )
    return model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), ["accuracy"]


def _attention():
    tokens = keras.Input((9,), dtype="int32")
    embedded = layers.Embedding(50, 16)(tokens)
    attended = layers.MultiHeadAttention(2, 8, dropout=0.1)(embedded, embedded)
    hidden = layers.LayerNormalization()(embedded + attended)
    hidden = layers.GlobalAveragePooling1D()(layers.Dropout(0.2)(hidden))
    model = keras.Model(tokens, layers.Dense(1, activation="sigmoid")(hidden))
    return model, "binary_crossentropy", ["accuracy", keras.metrics.AUC(name="auc")]


def _two():
    a, b = keras.Input((5,), name="a"), keras.Input((3,), name="b")
    hidden = layers.Dense(8, activation="tanh")(layers.Concatenate()([a, b]))
    outputs = {
        "o1": layers.Dense(1, name="o1")(hidden),
        "o2": layers.Dense(4, name="o2")(hidden),
    }
    weighted = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    model = keras.Model({"a": a, "b": b}, outputs)
    return model, {"o1": "mse", "o2": weighted}, {"o1": ["mae"], "o2": ["accuracy"]}


def _sequences(r):
    x = r.normal(size=(ROWS, 7, 4))
    for row in range(ROWS):
        x[row, 1 + row % 7 :] = 0
    return x, r.integers(0, 3, size=(ROWS, 7)), r.uniform(0.1, 2, size=(ROWS, 7))


def _images(r):
    return r.normal(size=(ROWS, 12, 12, 1)), r.integers(0, 5, size=ROWS), None


def _table(r):
    return r.normal(size=(ROWS, 13)), r.normal(size=(ROWS, 1)), r.uniform(0.1, 2, size=ROWS)


def _two_data(r):
    x = {"a": r.normal(size=(ROWS, 5)), "b": r.normal(size=(ROWS, 3))}
    y = {"o1": r.normal(size=(ROWS, 1)), "o2": r.integers(0, 4, size=ROWS)}
    return x, y, {"o1": r.uniform(0.1, 2, size=ROWS), "o2": r.uniform(0.1, 2, size=ROWS)}


def _tokens(r):
    return r.integers(0, 50, size=(ROWS, 9)), r.integers(0, 2, size=(ROWS, 1)), None


MODELS = {
    "linear": (_dense([]), _table),
    "mlp": (_dense([64, 64]), _table),
    "cnn": (_cnn, _images),
    "cnn, BatchNormalization, Dropout, GaussianNoise": (_cnn_statistics, _images),
    "lstm, mask": (_lstm, _sequences),
    "embedding, attention, Dropout": (_attention, _tokens),
    "two inputs, two outputs": (_two, _two_data),
}
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.003),
    "adamw": lambda: keras.optimizers.AdamW(0.01, global_clipnorm=0.5),
}
# (global batch size, micro-batch size, epochs): at least 10 steps, sizes that divide nothing, more
# micro-batches than are written out one by one, a batch smaller than the number of workers.
BATCHES = [(50, None, 4), (37, 4, 3), (150, 4, 6), (3, 2, 1)]


def cases(which):
    """Name, model, optimizer and batch of each case."""
    for number, model in enumerate(MODELS):
        for place, optimizer in enumerate(OPTIMIZERS):
            for other, batch in enumerate(BATCHES):
                few = place == number % len(OPTIMIZERS) and other == number % len(BATCHES)
                few = few and model not in ("linear", "cnn", "two inputs, two outputs")
                most = other == (number + place) % len(BATCHES)
                one = few and number == 3
                if {"one": one, "few": few, "most": most, "all": True}[which]:
                    yield f"{model}; {optimizer}; {batch}", model, optimizer, batch


def main():
    """Train every case."""
    ddp_gd.init(backend=os.environ.get("BACKEND", "auto"), bitwise=True)
    reduction._BUCKET = int(os.environ.get("EXCHANGED_AT_ONCE", reduction._BUCKET))
    left = {}
    for name, kind, optimizer, (batch_size, micro_batch_size, epochs) in cases(sys.argv[2]):
        keras.utils.set_random_seed(5)
        build, data = MODELS[kind]
        x, y, sample_weight = data(np.random.default_rng(0))
        model, loss, metrics = build()
        model.compile(OPTIMIZERS[optimizer](), loss, metrics=metrics)
        history = ddp_gd.fit(
            model,
            x,
            y,
            sample_weight=sample_weight,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            epochs=epochs,
            validation_split=0.1,
            verbose=0,
            seed=7,
            audit=float(os.environ.get("AUDIT", "0")),
        )
        left[name] = {
            "fingerprint": ddp_gd.fingerprint(model),
            "optimizer": _digest(model.optimizer.variables).hex(),
            "history": hashlib.sha256(json.dumps(history.history).encode()).hexdigest(),
            "last loss": history.history["loss"][-1],
        }
        keras.backend.clear_session()
    if ddp_gd.rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(left, file, indent=1)


if __name__ == "__main__":
    main()
