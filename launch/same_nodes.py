"""Compare what the nodes of a Slurm job say of themselves. Called by slurm.sbatch.

    srun ... python report.py | python same_nodes.py NODES

Exit status 2: a node said nothing, or differs from the first one; which, and in what, is on stderr.
"""

from __future__ import annotations

import json
import sys

_MARK = "ddp_gd-report: "


def main() -> int:
    """Read, compare, tell; return the exit status."""
    expected = int(sys.argv[1])
    lines = [line for line in sys.stdin if line.startswith(_MARK)]
    reports = [json.loads(line.removeprefix(_MARK)) for line in lines]
    reports.sort(key=lambda report: report["name"])
    problems = []
    if len(reports) < expected:
        names = ", ".join(report["name"] for report in reports) or "none"
        problems.append(f"{expected - len(reports)} of {expected} did not answer; {names} did")
    for report in reports[1:]:
        first = reports[0]
        for fact, value in first["facts"].items():
            other = report["facts"].get(fact, "none")
            if other != value:
                there, here = report["name"], first["name"]
                problems.append(f"{fact} is {other} on {there}, {value} on {here}")
    for problem in problems:
        print(f"slurm.sbatch: the nodes: {problem}", file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
