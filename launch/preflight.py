"""Ask every host of a job what it is, before anything is started there. Called by cpu_mpi.sh.

    python preflight.py [--leave-out] [--wrong=NAME] [--gpus] ROOT ENVIRONMENT MPIRUN HOST:N ...

Prints four lines, for cpu_mpi.sh: the hosts that can take part; how many of them are not this one;
the networks (CIDR) over which they reach each other; the interface there, if it has one name
everywhere. Exit status 2: a host doesn't answer, differs from this one, or, with --gpus, takes more
workers than it has GPUs; with --leave-out those are left out. So is, with --wrong, one that calls
itself so: an audit found that it computes wrong.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_MARK = "ddp_gd-report: "
_NO_CHECKOUT, _NO_ENVIRONMENT, _NO_DIRECTORY = 61, 62, 63
_SSH = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
_WRONG = "--wrong="
_SECONDS = 40  # for connecting and answering; a disk on the network may be slow at first


class _Problem(Exception):
    """Why a host can't take part."""


def main() -> int:
    """Ask, compare, print; return the exit status."""
    options = {"--leave-out", "--gpus"} & {*sys.argv}
    words = [word for word in sys.argv[1:] if word not in options]
    wrong = {word.removeprefix(_WRONG) for word in words if word.startswith(_WRONG)}
    root, environment, mpirun, *given = (word for word in words if not word.startswith(_WRONG))
    hosts = dict(entry.rsplit(":", 1) for entry in given)
    program = _program(root, environment, mpirun, "--gpus" in options)
    try:
        here = _report(subprocess.run(["sh"], input=program, capture_output=True, text=True))
    except _Problem as problem:
        _say(f"this host {problem}")
        return 2
    with ThreadPoolExecutor(max_workers=32) as pool:
        answers = dict(zip(hosts, pool.map(lambda h: _ask(h, program, here), hosts), strict=True))
    reports: dict[str, dict[str, Any]] = {}
    for host, answer in answers.items():
        if isinstance(answer, _Problem):
            _say(f"{host} {answer}")
        elif answer["name"] in wrong:
            _say(f"{host} is left out: an audit found that {answer['name']} computed wrong")
        elif found := [f"{f} is {b} there, {a} here" for f, a, b in differences(here, answer)]:
            _say(f"{host} differs from this host ({here['name']}): {'; '.join(found)}")
        elif "--gpus" in options and int(hosts[host]) > answer["gpus"]:
            _say(
                f"{host} takes {hosts[host]} workers and has GPUs for {answer['gpus']}: each needs "
                "one of its own. Let the host take fewer."
            )
        else:
            reports[host] = answer
            if int(hosts[host]) > answer["cores"]:
                _say(f"{host} has {answer['cores']} cores and takes {hosts[host]} workers: slow")
    if len(reports) < len(hosts) and "--leave-out" not in options:
        _say("nothing was started. Every host needs the same checkout and set-up at the same path.")
        return 2
    print(",".join(f"{host}:{hosts[host]}" for host in reports))
    others = [report for host, report in reports.items() if not _is_here(host)]
    print(len(others))
    networks, interfaces = _networks(here, others)
    print(",".join(networks))
    print(interfaces[0] if len(interfaces) == 1 else "")
    return 0


def _say(text: str) -> None:
    print(f"cpu_mpi: {text}", file=sys.stderr)


def _program(root: str, environment: str, mpirun: str, gpus: bool) -> str:
    """The shell program that has a host report; every word that isn't ours is quoted."""
    quote = shlex.quote
    path = f"PYTHONPATH={quote(os.environ['PYTHONPATH'])}" if "PYTHONPATH" in os.environ else ""
    report = Path(__file__).with_name("report.py").read_text()
    count = Path(__file__).with_name("gpus.sh").read_text() if gpus else ""
    return (
        f"{count}\n"
        f"cd {quote(root)}/ddp_gd 2>/dev/null || exit {_NO_CHECKOUT}\n"
        f"test -x {quote(environment)}/bin/python || exit {_NO_ENVIRONMENT}\n"
        f"cd {quote(os.getcwd())} 2>/dev/null || exit {_NO_DIRECTORY}\n"
        f"export PATH={quote(os.environ['PATH'])} {path}\n"
        f"exec {quote(environment)}/bin/python -c {quote(report)} {quote(mpirun)}"
        f"{' $(count_gpus)' if gpus else ''}\n"
    )


def _ask(host: str, program: str, here: dict[str, Any]) -> dict[str, Any] | _Problem:
    if _is_here(host):
        return here
    try:
        # The program comes through stdin: nothing of it passes the login shell.
        done = subprocess.run(
            [*_SSH, host, "sh"], input=program, capture_output=True, text=True, timeout=_SECONDS
        )
        return _report(done, host)
    except subprocess.TimeoutExpired:
        return _Problem(f"has not answered within {_SECONDS} s.")
    except FileNotFoundError:
        return _Problem("can't be asked: there is no ssh here. Install it (openssh-client).")
    except _Problem as problem:
        return problem


def _report(done: subprocess.CompletedProcess[str], host: str = "") -> dict[str, Any]:
    if reports := reports_in(done.stdout.splitlines()):
        return reports[-1]
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise _Problem(
        {
            255: f"can't be reached: {last}. `ssh {host} true` must work without a password.",
            _NO_CHECKOUT: "has no checkout of ddp_gd at the path that it has here.",
            _NO_ENVIRONMENT: "has no environment at the path that it has here: run "
            "launch/setup.sh there.",
            _NO_DIRECTORY: f"has no directory {os.getcwd()}, in which its workers would run.",
        }.get(done.returncode, f"could not report (exit status {done.returncode}): {last}")
    )


def _is_here(host: str) -> bool:
    """Tell whether a name means this host, which the launchers need no ssh for."""
    import psutil

    if host in ("localhost", socket.gethostname()):
        return True
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return False
    mine = (entry.address for entries in psutil.net_if_addrs().values() for entry in entries)
    return address.startswith("127.") or address in mine


def reports_in(lines: Iterable[str]) -> list[dict[str, Any]]:
    """What report.py printed, among what else a login prints."""
    return [json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK)]


def differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The facts in which two hosts differ: name, and value of each."""
    for fact, value in one["facts"].items():
        others = other["facts"].get(fact, "none")
        if others != value:
            yield fact, value, others


def _networks(
    here: dict[str, Any], others: Sequence[dict[str, Any]]
) -> tuple[list[str], list[str]]:
    """The networks and interfaces that ssh's connections to the other hosts went over.

    Those lead somewhere. The bridge of a container engine doesn't: it has the same address on every
    host. Empty where it can't be told, behind address translation for one.
    """
    ends = []
    for report in others:
        if len(report["connection"]) != 4:
            return [], []
        from_address, _, to_address, _ = report["connection"]
        ends += [(here, from_address), (report, to_address)]
    if any(address not in report["networks"] for report, address in ends):
        return [], []
    pairs = [report["networks"][address] for report, address in ends]
    return sorted({network for _, network in pairs}), sorted({name for name, _ in pairs})


if __name__ == "__main__":
    sys.exit(main())
