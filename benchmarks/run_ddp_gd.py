"""`ddp_gd.fit`: python -m benchmarks.run_ddp_gd CONTENDER default|bitwise."""

import sys

import ddp_gd
from benchmarks.keras_models import EpochSeconds, build
from benchmarks.workloads import EPOCHS, chosen, record

contender, mode = sys.argv[1:]
ddp_gd.init(bitwise=mode == "bitwise")
for name, workload in chosen().items():
    x, y = workload.data()
    model = build(name, workload)
    clock = EpochSeconds()
    ddp_gd.fit(
        model,
        x,
        y,
        batch_size=workload.batch_size,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )
    if ddp_gd.rank() == 0:
        record(contender, name, clock.seconds, model.get_weights())
