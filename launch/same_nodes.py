"""Compare what the nodes of a Slurm job say of themselves. Called by slurm.sbatch.

    srun ... python report.py | python same_nodes.py NODES

Exit status 2: a node said nothing, or differs from the first one; which, and in what, is on stderr.
"""

from __future__ import annotations

import sys

from preflight import differences, reports_in


def main() -> int:
    """Read, compare, tell; return the exit status."""
    expected = int(sys.argv[1])
    reports = sorted(reports_in(sys.stdin), key=lambda report: report["name"])
    problems = []
    if len(reports) < expected:
        names = ", ".join(report["name"] for report in reports) or "none"
        problems.append(f"{expected - len(reports)} of {expected} did not answer; {names} did")
    for report in reports[1:]:
        for fact, expected_value, value in differences(reports[0], report):
            there, here = report["name"], reports[0]["name"]
            problems.append(f"{fact} is {value} on {there}, {expected_value} on {here}")
    for problem in problems:
        print(f"slurm.sbatch: the nodes: {problem}", file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
