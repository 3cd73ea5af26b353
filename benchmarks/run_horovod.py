"""A loop by hand over Horovod's tape: python -m benchmarks.run_horovod CONTENDER.

What a user writes today: half of each batch on each of two workers, Horovod's tape, one update.
With Keras 3 the tape takes the variables' values (`variable.value`), not the variables.
"""

import sys
import time

import horovod.tensorflow as hvd
import tensorflow as tf

from benchmarks.keras_models import build
from benchmarks.workloads import EPOCHS, chosen, record

contender = sys.argv[1]
hvd.init()
for name, workload in chosen().items():
    model = build(name, workload)
    share = workload.batch_size // hvd.size()
    # The rows of each global batch that are this worker's.
    x, y = (
        array.reshape(workload.steps, hvd.size(), share, *array.shape[1:])[:, hvd.rank()]
        for array in workload.data()
    )
    # One iterator for all epochs: at the end of one tf.data waits until its tuning thread wakes, so
    # that an epoch of 0.7 s takes 1.27 s.
    data = tf.data.Dataset.from_tensor_slices((x, y)).repeat().prefetch(tf.data.AUTOTUNE)
    batches = iter(data)

    @tf.function
    def step(x, y, model=model):  # noqa: D103
        with tf.GradientTape() as tape:
            loss = model.loss if callable(model.loss) else tf.keras.losses.get(model.loss)
            value = tf.reduce_mean(loss(y, model(x, training=True)))
        weights = model.trainable_variables
        gradients = hvd.DistributedGradientTape(tape).gradient(value, [w.value for w in weights])
        model.optimizer.apply_gradients(zip(gradients, weights, strict=True))

    hvd.broadcast_variables([w.value for w in model.trainable_variables], root_rank=0)
    seconds = []
    for _ in range(EPOCHS):
        began = time.perf_counter()
        for _ in range(workload.steps):
            step(*next(batches))
        seconds.append(time.perf_counter() - began)
    if hvd.rank() == 0:
        record(contender, name, seconds[1:], model.get_weights())
