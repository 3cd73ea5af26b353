"""`tf.summary` in models: it writes during the steps, and not while the model is tried."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import keras
import tensorflow as tf

from ddp_gd.steps import keras_private


class Summaries(keras.callbacks.Callback):
    """Lets what layers write through `tf.summary` go where it goes in Keras.

    That is TensorBoard's files, if `update_freq` isn't "epoch", or those of a writer which is the
    default one where `fit` is called. A step is traced, and tried on some rows, before callbacks
    hear that a training begins: so the graph is made with the writer, and a number of the step that
    is 0 until then.

    Args:
        callbacks: of this worker.
    """

    def __init__(self, callbacks: Iterable[Any]):
        super().__init__()
        boards = [
            callback
            for callback in callbacks
            if isinstance(callback, keras.callbacks.TensorBoard) and callback.update_freq != "epoch"
        ]
        self._board = boards[-1] if boards else None
        self._training, self._test = (
            tf.Variable(0, trainable=False, dtype=tf.int64, name="ddp_gd_summary_step")
            for _ in range(2)
        )

    @property
    def wanted(self) -> bool:
        """Whether anything would be written."""
        return self._board is not None or bool(tf.summary.should_record_summaries())

    def tracing(self, training: bool) -> AbstractContextManager[Any]:
        """The context in which to trace the steps of a training, or of an evaluation."""
        context = ExitStack()
        if not self.wanted:
            return context
        step, every = self._training if training else self._test, 1
        if self._board is not None:
            every = self._board.update_freq
            writer = keras_private.summary_writer(self._board, training)
            context.enter_context(writer.as_default(step))
        context.enter_context(tf.summary.record_if(lambda: (step > 0) & (step % every == 0)))
        return context

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Count it."""
        self._training.assign_add(1)

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Count it."""
        self._test.assign_add(1)
