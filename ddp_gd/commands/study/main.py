"""`python -m ddp_gd.study`: what batch size, learning rate, optimizer and workers give and cost.

One job for each number of workers trains all combinations, one after the other (`worker`). What it
found is read back from the records, so a study that was stopped goes on where it was.
"""

import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from rich.progress import Progress

from ddp_gd.comm.environment import launch
from ddp_gd.commands.config import StudyConfig
from ddp_gd.commands.study import summary
from ddp_gd.commands.study.folder import StudyFolder
from ddp_gd.commands.study.trials import Result, setting, trials
from ddp_gd.errors import ConfigError
from ddp_gd.job import mpirun
from ddp_gd.loading import quietly
from ddp_gd.reporting.text_table import print_table

_COLUMNS: dict[str, Callable[[Result], object]] = {
    "workers": lambda r: r.trial.workers,
    "optimizer": lambda r: r.trial.optimizer,
    "batch_size": lambda r: r.batch_rows,
    "lr": lambda r: r.trial.lr,
    "epochs": lambda r: len(r.loss),
    "updates": lambda r: r.updates * len(r.loss),
    "outcome": lambda r: "diverged" if r.diverged else "trained",
    "loss": lambda r: r.loss[-1] if r.loss else "",
    "val_loss": lambda r: r.val_loss[-1] if r.val_loss else "",
    "seconds_per_epoch": lambda r: r.epoch_seconds,
    "rows_per_second": lambda r: r.rows_per_second,
    "fingerprint": lambda r: r.fingerprint,
}


def run(options: StudyConfig) -> None:
    """Train what is missing, then write and print what was found.

    Raises:
        ConfigError: the folder holds something else, or the job has another number of workers.
        DataError: a record is damaged.
        SystemExit: a job that was started did not end well, and has said why.
    """
    job = launch()
    folder = StudyFolder(options.out)
    if job.size > 1:
        # They import TensorFlow. An error after init() ends all workers, and is shown once.
        with quietly():
            from ddp_gd.commands.study import training
            from ddp_gd.job import runtime

        runtime.init()
        if options.workers not in (None, (job.size,)):
            raise ConfigError(
                f"--workers {' '.join(map(str, options.workers or ()))} can't be had in a job of "
                f"{job.size}: leave it out, or start the study without horovodrun."
            )
        workers: tuple[int, ...] = (job.size,)
        training.run(options)
        if job.rank > 0:
            return
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the job, too
        workers = options.workers or (1, 2)
        folder.require_same(setting(options))
        everything = trials(options, workers)
        to_do = len(folder.missing(everything))
        print(f"{len(everything)} trainings, {to_do} to do", flush=True)
        for count in workers:
            if folder.missing(trials(options, [count])):
                _start(options, count, folder)
    _conclude(options, [folder.read(trial) for trial in trials(options, workers)], folder)


def _start(options: StudyConfig, workers: int, folder: StudyFolder) -> None:
    """Run the job for so many workers; on a terminal, with a progress bar."""
    program = [sys.executable, "-m", "ddp_gd.commands.study.worker", *sys.argv[1:]]
    wanted = trials(options, [workers])
    bar = sys.stdout.isatty()
    with subprocess.Popen(  # noqa: S603
        mpirun.command(workers, program),
        env=mpirun.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if bar else None,
    ) as process:
        try:
            if bar:
                title = f"{workers} worker{'s' * (workers > 1)}"
                with Progress(*Progress.get_default_columns()) as progress:
                    task = progress.add_task(title, total=len(wanted))
                    running = True
                    while running:
                        running = process.poll() is None
                        done = len(wanted) - len(folder.missing(wanted))
                        progress.update(task, completed=done)
                        time.sleep(0.2 * running)
            process.wait()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        sys.exit(process.returncode)


def _conclude(options: StudyConfig, results: Sequence[Result], folder: StudyFolder) -> None:
    from ddp_gd.commands.study import plot  # matplotlib takes a second

    with (folder.path / "study.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        table.writerows([value(result) for value in _COLUMNS.values()] for result in results)
    plot.draw_study(results, folder.path / "study.png")
    print()
    head, *rows = summary.table(results)
    print_table(head, rows)
    print("* best of its column; best lr: lowest loss in the last epoch")
    for line in summary.linear_rule(results):
        print(line)
    print(f"\nresults {folder.path}/: study.png, study.csv, records/")
