"""A training that saves itself, in bitwise mode; rank 0 writes how it ended as JSON.

    python resumed.py OUT.json FOLDER [RANK STEP SIGNAL]

It goes on with what FOLDER holds, and writes to OUT.json.began after how many updates that is. With
RANK, STEP and SIGNAL that worker gets the signal after so many steps. With BEGAN in the
environment, each worker writes its process number to the file BEGAN.RANK when its training begins.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import ddp_gd


class Signalled(keras.callbacks.Callback):
    """Sends this process a signal after so many steps.

    Before, it waits for the checkpoint files to be as many as they will be: a file that is still
    being written is lost, which is right, but not the same each time.
    """

    def __init__(self, steps: int, number: signal.Signals, folder: Path):
        super().__init__()
        self.left = steps
        self.number = number
        self.folder = folder

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count down."""
        self.left -= 1
        if self.left == 0:
            while not any(self.folder.glob("*.safetensors")):
                time.sleep(0.01)
            os.kill(os.getpid(), self.number)


class Began(keras.callbacks.Callback):
    """Writes how many updates the optimizer has behind it when the first epoch begins.

    No hook for batches: several steps shall still be made in one call.
    """

    def __init__(self, file: Path):
        super().__init__()
        self.file = file

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Write it, once."""
        if not self.file.exists():
            self.file.write_text(str(int(self.model.optimizer.iterations.numpy())))

    def on_train_end(self, logs: Any = None) -> None:
        """There may be no epoch left."""
        self.on_epoch_begin(0)


def build() -> keras.Model:
    """With batch statistics, random numbers, and metrics of several kinds."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        "binary_crossentropy",
        metrics=["accuracy", keras.metrics.AUC(), keras.metrics.F1Score(threshold=0.5)],
    )
    return model


def train(folder: Path | None, more: list[keras.callbacks.Callback]) -> dict[str, Any]:
    """Train, and return how it ended."""
    r = np.random.default_rng(0)
    x = r.normal(size=(203, 8))
    y = (x.sum(axis=1, keepdims=True) + r.normal(size=(203, 1)) > 0).astype("float32")
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    model = build()
    history = ddp_gd.fit(
        model,
        x,
        y,
        batch_size=20,
        epochs=6,
        validation_split=0.2,
        verbose=0,
        seed=4,
        callbacks=[
            keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.7, patience=1),
            *more,
        ],
        checkpoint=folder and ddp_gd.Checkpoint(folder, every_steps=3, resume=True),
    )
    logs = {name: np.asarray(values).tolist() for name, values in history.history.items()}
    state = [v.numpy().tolist() for v in model.optimizer.variables]
    return {"fingerprint": ddp_gd.fingerprint(model), "history": logs, "optimizer": state}


def main() -> None:
    """Train."""
    ddp_gd.init(os.environ.get("BACKEND", "auto"), bitwise=True)
    folder, more = Path(sys.argv[2]), []
    if sys.argv[3:] and int(sys.argv[3]) == ddp_gd.rank():
        more = [Signalled(int(sys.argv[4]), signal.Signals[sys.argv[5]], folder)]
    if "BEGAN" in os.environ:
        file = Path(f"{os.environ['BEGAN']}.{ddp_gd.rank()}")

        def note(logs: Any = None) -> None:
            partial = Path(f"{file}.partial")
            partial.write_text(str(os.getpid()))
            partial.rename(file)

        more.append(keras.callbacks.LambdaCallback(on_train_begin=note))
    if ddp_gd.rank() == 0:
        more.append(Began(Path(f"{sys.argv[1]}.began")))
    left = train(folder, more)
    if ddp_gd.rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(left))


if __name__ == "__main__":
    main()
