"""Trains the GAN of `own_steps`, saved after each step; rank 1 is killed in the second epoch.

Usage: python -m programs.killed_gan FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import keras
from programs import compare, own_steps

import ddp_gd


class Killed(keras.callbacks.Callback):
    """Kills this process after so many steps, as soon as something is saved."""

    def __init__(self, steps: int, folder: Path):
        super().__init__()
        self.left, self.folder = steps, folder

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if self.left == 0:
            while not any(self.folder.glob("*.safetensors")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: Path | None, *more: keras.callbacks.Callback) -> compare.Outcome:
    """Train for three epochs, going on with what the folder holds."""
    saved = folder and ddp_gd.Checkpoint(folder, every_steps=1, resume=True)
    return own_steps.trained("gan", False, epochs=3, seed=4, callbacks=[*more], checkpoint=saved)


if __name__ == "__main__":
    ddp_gd.init()
    saved_in = Path(sys.argv[1])
    train(saved_in, *([Killed(5, saved_in)] if ddp_gd.rank() == 1 else []))
