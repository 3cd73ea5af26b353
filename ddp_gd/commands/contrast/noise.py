"""The distance of a random mini-batch's gradient from that of all rows."""

import keras
import numpy as np
import tensorflow as tf


def of_each_row(model: keras.Model, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gradient of the loss of every single row.

    Args:
        model: compiled, with a loss that is a mean over rows.
        x: features, rows first.
        y: targets, rows first.

    Returns:
        float64, shape (rows, weights): their mean is the gradient of the whole batch.
    """

    @tf.function
    def gradient(x_row: tf.Tensor, y_row: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x_row, y_row, model(x_row, training=True))
        gradients = tape.gradient(loss, [w.value for w in model.trainable_variables])
        return tf.concat([tf.reshape(g, [-1]) for g in gradients], axis=0)

    rows = [gradient(x[i : i + 1], y[i : i + 1]).numpy() for i in range(len(x))]
    return np.stack(rows).astype(np.float64)


def sizes(rows: int) -> list[int]:
    """Batch sizes to look at: 1, 2, 4, ... and all rows."""
    return [2**k for k in range(rows.bit_length()) if 2**k < rows] + [rows]


def measured(gradients: np.ndarray, batch_size: int, draws: int, seed: int = 0) -> float:
    """The spread of the mini-batch gradient around the full gradient, of so many random draws.

    Args:
        gradients: of each row, shape (rows, weights).
        batch_size: rows of a mini-batch, drawn without replacement.
        draws: how many mini-batches.
        seed: of the draws.

    Returns:
        The root of the mean squared distance, relative to the norm of the full gradient.
    """
    rows = len(gradients)
    chosen = np.random.default_rng([seed, batch_size]).random((draws, rows)).argsort(axis=1)
    picks = np.zeros((draws, rows))  # 1 / batch_size where a row is in the mini-batch, else 0
    np.put_along_axis(picks, chosen[:, :batch_size], 1.0 / batch_size, axis=1)
    full = gradients.mean(axis=0)
    distances = np.linalg.norm(picks @ gradients - full, axis=1)  # (draws,)
    return float(np.sqrt(np.mean(distances**2)) / np.linalg.norm(full))


def expected(gradients: np.ndarray, batch_size: int) -> float:
    """The limit of `measured` for many draws: s sqrt((n - B) / ((n - 1) B)).

    s is `measured` for single rows, n the number of rows and B the batch size: the standard error
    of a mean that is drawn without replacement (Cochran, Sampling Techniques, 1977, theorem 2.2).
    For B much smaller than n it is s / sqrt(B).
    """
    rows = len(gradients)
    without_replacement = (rows - batch_size) / max(1, rows - 1)
    return of_one_row(gradients) * float(np.sqrt(without_replacement / batch_size))


def of_one_row(gradients: np.ndarray) -> float:
    """The spread of the rows' gradients around their mean, relative to the norm of that mean."""
    full = gradients.mean(axis=0)
    distances = np.linalg.norm(gradients - full, axis=1)
    return float(np.sqrt(np.mean(distances**2)) / np.linalg.norm(full))
