"""The trainings of a study, made by the workers of one job."""

import gc
import time

import keras

from ddp_gd.batching.arrays import Arrays
from ddp_gd.comm import agree
from ddp_gd.commands.config import StudyConfig
from ddp_gd.commands.study.folder import StudyFolder
from ddp_gd.commands.study.trials import Result, Trial, setting, trials
from ddp_gd.commands.task import Task
from ddp_gd.errors import ConfigError, NumericsError
from ddp_gd.job import runtime
from ddp_gd.reporting.times import Times
from ddp_gd.training.replicas import fingerprint


def run(options: StudyConfig) -> None:
    """Train the combinations with as many workers as this job has, one after the other.

    Raises:
        DdpGdError: something can't be used. A loss that isn't finite is a result like others.
    """
    runtime.init()
    communicator = runtime.communicator()
    leader = communicator.rank == 0
    everything = trials(options, [communicator.size])
    task = Task(everything[0].options(options), communicator)
    for trial in everything:
        task.plan(trial.options(options))  # refuses a batch size before the first training
    if task.build().compiled:
        raise ConfigError(
            f"--model {options.model} returns a compiled model, with an optimizer of its own: a "
            "study needs to set the learning rate. Leave model.compile(...) out of the function."
        )
    folder = StudyFolder(options.out)
    content = Arrays(*task.data["training"]).describe()
    if leader:
        folder.begin(setting(options) | {f"data: {k}": v for k, v in content.items()})
    # Only rank 0's folder counts.
    missing = [trial.name for trial in folder.missing(everything)] if leader else []
    missing = agree.gather_json(communicator, missing)[0]
    wanted = [trial for trial in everything if trial.name in missing]
    # What is loaded by now stays: looking through it for garbage would take longer than tracing.
    gc.freeze()
    began = time.monotonic()
    for number, trial in enumerate(wanted, start=1):
        result = _train(options, task, trial)
        if leader:
            folder.write(result)
            left = (time.monotonic() - began) / number * (len(wanted) - number)
            ended = "diverged" if result.diverged else f"loss {result.loss[-1]:.4g}"
            print(f"{number}/{len(wanted)}  {trial}: {ended}; {left:.0f} s left", flush=True)


def _train(options: StudyConfig, task: Task, trial: Trial) -> Result:
    """Train one combination, from the same initial weights as every other."""
    keras.utils.clear_session()  # the graphs of the one before
    config = trial.options(options)
    model = task.build()
    task.compile(model, config)
    times = Times()
    diverged = ""
    try:
        task.fit(model, config, verbose=0, callbacks=[times])
    except NumericsError as error:  # on every worker, after the same step
        diverged = str(error)
    history = model.history.history
    return Result(
        trial=trial,
        rows=task.train_rows,
        updates=task.plan(config).steps,
        diverged=diverged,
        loss=history.get("loss", []),
        val_loss=history.get("val_loss", []),
        seconds=[epoch["seconds"] - epoch["validation"] for epoch in times.epochs],
        fingerprint=fingerprint(model),
    )
