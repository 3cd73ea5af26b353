"""Train a small classifier on made-up rows."""

import keras
import numpy as np

import ddp_gd

ddp_gd.init()
keras.utils.set_random_seed(1)
x = np.random.normal(size=(1000, 8)).astype("float32")
y = (x.sum(axis=1) > 0).astype("int64")

model = keras.Sequential(
    [keras.Input((8,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(2)]
)
model.compile(
    optimizer="adam",
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
ddp_gd.fit(model, x, y, batch_size=64, epochs=5, validation_split=0.1, shuffle=False, verbose=2)
