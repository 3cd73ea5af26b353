"""A GAN with a training step of its own: two optimizers, dropout, draws. Any number of workers.

python examples/gan.py [--epochs N]
ddp-gd run -np 4 examples/gan.py
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

import ddp_gd

LATENT = 4


class GAN(keras.Model):
    """Learns to make points on a circle."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = keras.Sequential(
            [
                keras.Input((2,)),
                layers.Dense(32, "leaky_relu"),
                layers.Dropout(0.2),
                layers.Dense(1),
            ]
        )
        self.generator = keras.Sequential(
            [keras.Input((LATENT,)), layers.Dense(32, "relu"), layers.Dense(2)]
        )
        self.seeds = keras.random.SeedGenerator(1)

    def compile(self, d_optimizer, g_optimizer, loss) -> None:
        """Take two optimizers."""
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss

    def train_step(self, real):
        """Train the discriminator, then the generator, on one mini-batch."""
        rows = ops.shape(real)[0]
        made = self.generator(keras.random.normal((rows, LATENT), seed=self.seeds))
        labels = ops.concatenate([ops.ones((rows, 1)), ops.zeros((rows, 1))], axis=0)
        with tf.GradientTape() as tape:
            judged = self.discriminator(ops.concatenate([made, real], axis=0), training=True)
            d_loss = self.loss_fn(labels, judged)
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights, strict=True))

        latent = keras.random.normal((rows, LATENT), seed=self.seeds)
        with tf.GradientTape() as tape:
            judged = self.discriminator(self.generator(latent), training=True)
            g_loss = self.loss_fn(ops.zeros((rows, 1)), judged)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights, strict=True))
        return {"d_loss": d_loss, "g_loss": g_loss}


def main() -> None:
    """Train it, and print its losses once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    epochs = parser.parse_args().epochs
    ddp_gd.init()
    keras.utils.set_random_seed(1)
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 2000)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype("float32")
    model = GAN()
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.optimizers.Adam(1e-3),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    history = ddp_gd.fit(model, points, batch_size=100, epochs=epochs, verbose=0, seed=1)
    if ddp_gd.rank() == 0:
        for name, values in history.history.items():
            print(name, " ".join(f"{value:.4f}" for value in values))


if __name__ == "__main__":
    main()
