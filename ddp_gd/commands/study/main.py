"""`python -m ddp_gd.study`: what batch size, learning rate, optimizer and workers give and cost.

One job for each number of workers trains all combinations, one after the other (`trials.py`). What
it found is read back from the records, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import csv
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.progress import Progress

from ddp_gd.comm.environment import launch
from ddp_gd.commands.config import StudyConfig
from ddp_gd.commands.study.trials import Journal, Result, best_of_each, setting, speed, trials
from ddp_gd.errors import ConfigError
from ddp_gd.job import mpirun

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
    records = Journal(options.out)
    if job.size > 1:
        # They import TensorFlow. An error after init() ends all workers, and is shown once.
        from ddp_gd.commands.study import worker
        from ddp_gd.job import runtime

        runtime.init()
        if options.workers not in (None, (job.size,)):
            raise ConfigError(
                f"--workers {' '.join(map(str, options.workers or ()))} can't be had in a job of "
                f"{job.size}: leave it out, or start the study without horovodrun."
            )
        workers: tuple[int, ...] = (job.size,)
        worker.run(options)
        if job.rank > 0:
            return
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the job, too
        workers = options.workers or (1, 2)
        records.require_same(setting(options))
        everything = trials(options, workers)
        to_do = len(records.missing(everything))
        print(f"{len(everything)} trainings, {to_do} to do", flush=True)
        for count in workers:
            if records.missing(trials(options, [count])):
                _start(options, count, records)
    _conclude(options, [records.read(trial) for trial in trials(options, workers)], records)


def _start(options: StudyConfig, workers: int, records: Journal) -> None:
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
                    task = progress.add_task(title, total=len(records.missing(wanted)))
                    already = len(wanted) - len(records.missing(wanted))
                    while process.poll() is None:
                        done = len(wanted) - len(records.missing(wanted)) - already
                        progress.update(task, completed=done)
                        time.sleep(0.2)
                    progress.update(task, completed=len(wanted) - already)
            process.wait()
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        sys.exit(process.returncode)


def _conclude(options: StudyConfig, results: Sequence[Result], records: Journal) -> None:
    from ddp_gd.commands.study import plot  # matplotlib takes a second

    with (records.folder / "study.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        table.writerows([value(result) for value in _COLUMNS.values()] for result in results)
    plot.draw_study(results, records.folder / "study.png")
    print()
    _print_table(list(_summary(results)))
    for line in _rule(results):
        print(line)
    print(f"\nresults {records.folder}/: study.png, study.csv, records/")


def _summary(results: Sequence[Result]) -> Iterator[list[str]]:
    """A row for each optimizer and batch size, at its best learning rate; the best ones marked."""
    counts = sorted({result.trial.workers for result in results})
    validated = any(result.val_loss for result in results)
    yield [
        "optimizer",
        "batch size",
        "best lr",
        "updates",
        "loss",
        *(["val_loss"] if validated else []),
        *(f"rows/s, {count} worker{'s' * (count > 1)}" for count in counts),
    ]
    rows = []
    for best in best_of_each(results):
        speeds = {count: speed(results, best, count) for count in counts}
        losses = [-(best.loss or [math.nan])[-1]]
        losses += [-(best.val_loss or [math.nan])[-1]] if validated else []
        if not math.isfinite(best.score):
            losses = [math.nan] * len(losses)
        head = [best.trial.optimizer, str(best.trial.batch_size), f"{best.trial.lr:g}"]
        head.append(str(best.updates * len(best.loss)))
        rows.append((head, [*losses, *speeds.values()]))
    columns = zip(*(numbers for _, numbers in rows), strict=True)
    most = [max((v for v in column if not math.isnan(v)), default=0) for column in columns]
    for head, numbers in rows:
        cells = [
            ("diverged" if math.isnan(v) else f"{abs(v):.4g}") + (" *" if v == top else "  ")
            for v, top in zip(numbers, most, strict=True)
        ]
        yield [*head, *cells]


def _rule(results: Sequence[Result]) -> Iterator[str]:
    """Where the learning rate that is proportional to the batch size is the best one tried."""
    rates = sorted({result.trial.lr for result in results})
    best = best_of_each(results)
    for optimizer in dict.fromkeys(result.trial.optimizer for result in best):
        trained = [r for r in best if r.trial.optimizer == optimizer and math.isfinite(r.score)]
        trained.sort(key=lambda result: result.batch_rows)
        if len(rates) < 2 or len(trained) < 2:
            continue
        first = trained[0]
        yield f"\n{optimizer}: a learning rate proportional to the batch size, and the best one"
        for result in trained:
            linear = first.trial.lr * result.batch_rows / first.batch_rows
            nearest = min(rates, key=lambda rate: abs(math.log(rate / linear)))
            if linear > rates[-1] * 2 and result.trial.lr == rates[-1]:
                verdict = "larger than every one tried"
            elif nearest == result.trial.lr:
                verdict = "the nearest one tried was best"
            else:
                verdict = f"too {'high' if nearest > result.trial.lr else 'low'}"
            yield (
                f"  batch size {result.batch_rows:>6}: best {result.trial.lr:<7g} "
                f"by the rule {linear:<8.3g} {verdict}"
            )


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    print("* best of its column; best lr: lowest loss in the last epoch")
