"""Trials of planted wrong results: run in jobs of many cases each, and judged."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from tests import jobs
from tests.faults.compute import Trial, trials

_PROGRAM = str(Path(__file__).with_name("compute.py"))
_CASES = 50  # of one job


@dataclasses.dataclass(frozen=True)
class Found:
    """What became of one trial, as each worker saw it."""

    trial: Trial
    workers: list[dict[str, Any]]

    @property
    def problem(self) -> str | None:
        """What isn't as promised."""
        first, rank, count = self.workers[0], self.trial.rank, len(self.workers)
        same = ("ranks", "text", "updates", "fingerprint")
        if any(other[name] != first[name] for other in self.workers for name in same):
            return "the workers don't say the same"
        if rank < 0:
            return None if first["ranks"] is None else f"false alarm: {first['text']}"
        if not self.workers[rank]["struck"]:
            return "did not strike"
        if first["ranks"] is None:
            return None if first.get("harmless") else "not found"
        # Of two workers it is known for certain where three of four results agree.
        named = first["ranks"] == [rank] or (count == 2 and first["ranks"] == [])
        if not named or f"rank {rank} (on " not in first["text"]:
            return f"another worker named: {first['text']}"
        return None


def run(count: int, np: int, seed: str, clean: int = 0, backend: str = "mpi") -> list[Found]:
    """Run so many trials with `np` workers, the last `clean` of them with nothing wrong."""
    todo = trials(count, np, seed, clean)
    found = []
    for begin in range(0, count, _CASES):
        cases = todo[begin : begin + _CASES]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trials"
            file.write_text(json.dumps([dataclasses.asdict(trial) for trial in cases]))
            launcher = "python" if np == 1 else "mpirun"
            argv = [_PROGRAM, str(file), "single" if np == 1 else backend]
            job = jobs.run_job(np, argv, launcher, timeout=60 + 2 * len(cases))
            if job.returncode != 0:
                raise RuntimeError(f"the job failed:\n{job.stderr}")
            seen = [json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(np)]
        for trial, *workers in zip(cases, *seen, strict=True):
            found.append(Found(trial, workers))
    return found


def summary(found: list[Found]) -> str:
    """How many were found, and what went wrong."""
    planted = [one for one in found if one.trial.rank >= 0]
    named = sum(one.workers[0]["ranks"] == [one.trial.rank] for one in planted)
    harmless = sum(one.workers[0]["ranks"] is None and one.problem is None for one in planted)
    clean = len(found) - len(planted)
    alarms = sum(one.trial.rank < 0 and one.problem is not None for one in found)
    wrong = sum(one.problem is not None for one in found)
    return (
        f"{len(planted)} wrong results planted: the one worker named in {named}, no trace left in "
        f"any bit by {harmless}; {alarms} false alarms in {clean} clean trainings; {wrong} problems"
    )
