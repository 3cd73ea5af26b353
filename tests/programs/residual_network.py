"""A residual network of keras.applications: five steps on all workers, compared with Keras.

Usage: python -m programs.residual_network BACKEND

EfficientNetB0 has BatchNormalization in every block, drops whole blocks at random, and is smooth.
ResNet50 or MobileNetV2 say nothing here: with weights moved by 1e-7 Keras itself ends elsewhere,
since rounding carries some of their many ReLUs over the kink. Returns whether it differs.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
from programs import cases, compare
from programs.cases import Case

import ddp_gd

BATCH, STEPS, SIDE, CLASSES = 16, 5, 64, 10


def residual() -> Case:
    """Without weights, small images."""
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (STEPS * BATCH, SIDE, SIDE, 3)).astype("float32")
    shape = images.shape[1:]
    model = keras.applications.EfficientNetB0(input_shape=shape, weights=None, classes=CLASSES)
    optimizer = keras.optimizers.SGD(5e-4)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Case(model, images, random.integers(0, CLASSES, len(images)))


def main(backend: str) -> int:
    """Train, print what differs, and return whether anything does."""
    ddp_gd.init(backend)
    cases.CASES["residual"] = residual
    options = {"batch_size": BATCH, "epochs": 1}
    actual = compare.train("residual", **options)
    found = []
    if ddp_gd.rank() == 0:
        expected = compare.train("residual", with_keras=True, **options)
        found = compare.differences(expected, actual, 1e-4)
        print(found[:5] or f"equal to 1e-4 after {STEPS} steps at {ddp_gd.size()} workers")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
