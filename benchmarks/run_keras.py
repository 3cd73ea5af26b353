"""`keras.Model.fit`: python -m benchmarks.run_keras CONTENDER STEPS_PER_EXECUTION."""

import sys

from benchmarks.keras_models import EpochSeconds, build
from benchmarks.workloads import EPOCHS, chosen, record

contender, steps_per_execution = sys.argv[1], int(sys.argv[2])
for name, workload in chosen().items():
    x, y = workload.data()
    model = build(name, workload, steps_per_execution=steps_per_execution)
    clock = EpochSeconds()
    model.fit(
        x,
        y,
        batch_size=workload.batch_size,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )
    record(contender, name, clock.seconds, model.get_weights())
