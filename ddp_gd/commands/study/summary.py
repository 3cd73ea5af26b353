"""Tables and sentences about what a study found."""

import math
import statistics
from collections.abc import Iterator, Sequence

from ddp_gd.commands.study.trials import Result


def best_of_each(results: Sequence[Result]) -> list[Result]:
    """Find the result at the best learning rate, for each optimizer and batch size.

    All of the smallest number of workers: the others make the same updates.
    """
    fewest = min(result.trial.workers for result in results)
    best: dict[tuple[str, int], Result] = {}
    for result in results:
        key = result.trial.optimizer, result.batch_rows
        if result.trial.workers == fewest and (key not in best or result.score < best[key].score):
            best[key] = result
    return list(best.values())


def speed(results: Sequence[Result], like: Result, workers: int) -> float:
    """Find the rows a second of so many workers, with the optimizer and batch size of `like`.

    The median over the learning rates, which don't matter for it; NaN if all diverged at once.
    """
    key = like.trial.optimizer, like.batch_rows
    same = (r for r in results if r.trial.workers == workers)
    speeds = [r.rows_per_second for r in same if (r.trial.optimizer, r.batch_rows) == key]
    return statistics.median([value for value in speeds if math.isfinite(value)] or [math.nan])


def table(results: Sequence[Result]) -> Iterator[list[str]]:
    """Give a head, and a row for each optimizer and batch size at its best learning rate.

    The best of each column is marked.
    """
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
            ("* " if v == top else "") + ("diverged" if math.isnan(v) else f"{abs(v):.4g}")
            for v, top in zip(numbers, most, strict=True)
        ]
        yield [*head, *cells]


def linear_rule(results: Sequence[Result]) -> Iterator[str]:
    """Tell where the learning rate that is proportional to the batch size is the best one tried."""
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
