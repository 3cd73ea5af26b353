"""Inject faults into jobs: python -m tests.faults --trials 500, in the set-up environment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ddp_gd.batching.plan import block
from tests.faults import audits, kills, messages, trials


def main() -> None:
    """Run the trials; the exit status is 1 if one of them was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--trials", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of their order (default: 0)")
    parser.add_argument(
        "--by-hand", action="store_true", help="strike a loop by hand over Horovod, to compare"
    )
    parser.add_argument("--kills", type=int, help="instead, kill so many trainings and resume them")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=("process", "compute"),
        default=["process"],
        help="what goes wrong: a process; or what a worker computes, with as many clean trainings",
    )
    parser.add_argument("--log", type=Path, help="file for the output of trials that went wrong")
    options = parser.parse_args()
    if options.kills:
        sys.exit(_kills(options.kills, options.seed))
    wrong = False
    if "compute" in options.kinds:
        wrong = _compute(options.trials, options.seed)
    if "process" in options.kinds:
        wrong |= _process(options)
    sys.exit(wrong)


def _process(options: argparse.Namespace) -> bool:
    """Strike workers; tell whether something was not as promised."""
    todo = trials.faults(options.seed)
    if options.by_hand:
        todo = [f for f in todo if f.phase not in ("checkpoint", "evaluation")]
        todo = [f for f in todo if f.kind not in messages.ASKED]
    outcomes = []
    for number in range(options.trials):
        outcome = trials.run(todo[number % len(todo)], options.by_hand)
        outcomes.append(outcome)
        fault = outcome.fault
        problems = ", ".join(outcome.problems) or "ok"
        print(
            f"{number + 1:4} {fault.kind:13} {fault.phase:10} rank {fault.rank} of {fault.np} "
            f"{fault.launcher}/{fault.backend} status {outcome.status} {outcome.seconds:.2f} s "
            f"{problems}",
            flush=True,
        )
        if options.log and outcome.problems:
            with options.log.open("a") as log:
                log.write(f"### {number + 1} {fault}: {problems}\n{outcome.output}\n")
    print(trials.summary(outcomes))
    return any(outcome.problems for outcome in outcomes) or trials.too_slow(outcomes)


def _compute(count: int, seed: int) -> bool:
    """Plant wrong results; tell whether something was not as promised."""
    found: list[audits.Found] = []
    # One of each number of workers and backend, as equally many of them as can be.
    jobs = [(1, "single"), *((np, backend) for np in (2, 3, 4) for backend in ("mpi", "horovod"))]
    for number, (np, backend) in enumerate(jobs):
        first, stop = block(count, len(jobs), number)
        if part := stop - first:
            new = audits.run(2 * part, np, f"{seed} {backend}", clean=part, backend=backend)
            for one in new:
                print(f"{len(found) + 1:4} {one.trial} of {np} {one.problem or 'ok'}", flush=True)
                found.append(one)
    print(audits.summary(found))
    return any(one.problem is not None for one in found)


def _kills(count: int, seed: int) -> bool:
    """Kill and resume; tell whether something was not as promised, or not as it should be tried."""
    expected = kills.never_killed()
    done: list[kills.Kill] = []
    for number in range(count):
        # Half of them shall leave a checkpoint half written; the kill may come too late for that.
        saving = 2 * sum(kill.half_written for kill in done) < number
        kill = kills.run(seed + number, saving, expected)
        done.append(kill)
        print(f"{number + 1:4} {kill} {', '.join(kill.problems) or 'ok'}", flush=True)
    text, wrong = kills.summary(done)
    print(text)
    return wrong


if __name__ == "__main__":
    main()
