"""A model class and a callback of your own, the best model kept, and a training that goes on.

Stop it when you like and start it again, with any number of workers: it goes on where it was.
"""

import argparse
from pathlib import Path

import keras

import ddp_gd

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("own_model"), help="folder for the results")
parser.add_argument("--epochs", type=int, default=40)
options = parser.parse_args()

ddp_gd.init()
keras.utils.set_random_seed(1)


@keras.saving.register_keras_serializable()
class Wide(keras.Model):
    """A straight line and a small network beside it, added."""

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.line = keras.layers.Dense(1)
        self.bend = keras.layers.Dense(units, activation="relu")
        self.out = keras.layers.Dense(1)

    def call(self, x):
        """Compute what `fit` trains; `train_step` stays Keras's."""
        return self.line(x) + self.out(self.bend(x))

    def get_config(self):
        """Return what `__init__` needs when the model is loaded."""
        return {**super().get_config(), "units": self.units}


class Slower(keras.callbacks.Callback):
    """Divide the learning rate by `factor` after every `epochs` epochs."""

    def __init__(self, epochs: int, factor: float):
        super().__init__()
        self.epochs, self.factor = epochs, factor

    def on_epoch_end(self, epoch, logs=None):
        """Act on every worker alike, and print on one."""
        if (epoch + 1) % self.epochs == 0:
            rate = self.model.optimizer.learning_rate
            rate.assign(rate / self.factor)
            if ddp_gd.rank() == 0:
                print(f"learning rate: {float(rate):g}")


# The last tenth validates. Mean and deviation come from the other rows alone.
data = ddp_gd.load("diabetes")
x, y = data.features[:], data.targets[:]
cut = len(x) * 9 // 10
x = (x - x[:cut].mean(axis=0)) / x[:cut].std(axis=0)
y = (y - y[:cut].mean(axis=0)) / y[:cut].std(axis=0)

model = Wide(16)
model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9), loss="mean_squared_error")
ddp_gd.fit(
    model,
    x[:cut],
    y[:cut],
    batch_size=32,
    epochs=options.epochs,
    validation_data=(x[cut:], y[cut:]),
    verbose=2,
    callbacks=[
        Slower(epochs=5, factor=2),
        keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True),
        # Written by rank 0 alone: ddp_gd.fit sees to that.
        keras.callbacks.ModelCheckpoint(options.out / "best.keras", save_best_only=True),
    ],
    checkpoint=ddp_gd.Checkpoint(options.out / "checkpoints", resume=True),
)
results = ddp_gd.evaluate(model, x[cut:], y[cut:], verbose=0)
if ddp_gd.rank() == 0:
    print(f"validation loss: {results['loss']:.6f}")
    print(f"fingerprint: {ddp_gd.fingerprint(model)}")
