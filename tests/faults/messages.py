"""What a job says of its end: which worker it blames, on which host, and why.

One message of ours is required, and that it blames the right worker, names its host, and gives the
right reason. Of a death the launcher tells the signal or the exit status, so it has to blame the
same worker. It speaks alone where no other worker can, or needs to:

- a worker that is struck before `ddp_gd.init` is unknown to the others, but the launcher sees its
  death. Unless it exits with status 0 before another one has started MPI, which is taken for done:
  then, and where it hangs, the others wait up to the limit for the start, and one of them says so;
- one that dies right after it may do so before the others watch, and the launcher ends them;
- one that leaves with an exit status after the training leaves nobody waiting.

A worker that is asked to stop, by a signal while it trains, is no fault: it is told once that all
stopped, by which signal, and where that is saved.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Blame(NamedTuple):
    """A message: whom it blames (None: nobody), on which host ("" if it doesn't say), and why."""

    rank: int | None
    host: str
    reason: str


_TAG = re.compile(r"\[\d+,\d+\]<std(?:out|err)>:")  # horovodrun's, in the middle of lines too
_ANY = re.compile(r"ddp_gd: (?:error|this ended the job)")
_OURS = (
    # A traceback, up to the next message or what the launcher puts around its own.
    re.compile(
        r"ddp_gd: this ended the job \(rank (\d+) on (\S+)\):\n(.*?)(?=\n-{20}|\nddp_gd: |\Z)", re.S
    ),
    re.compile(r"ddp_gd: error: rank (\d+) \((?:process \d+ )?on (\S+)\) (.+)"),
    re.compile(r"ddp_gd: error \(rank (\d+) on (\S+)\): (.+)"),
)
_LAUNCHERS = re.compile(
    r"process rank (\d+) with PID \d+ on\s+node (\S+) (exited on signal \d+|exiting improperly)"
    r"|Process name: \[\[\d+,1\],(\d+)\](\s+)(Exit code: +\d+)"
)
# What our message says of each kind, and the launcher's.
_REASONS = {
    "exception": ("Struck: this is the fault", "Exit code: +1"),
    "out of memory": ("MemoryError", "Exit code: +1"),
    "sys.exit(3)": ("ended its program|SystemExit: 3", "Exit code: +3"),
    "sys.exit(0)": ("ended its program|SystemExit: 0", "exiting improperly"),
    "os._exit(3)": ("has died", "Exit code: +3"),
    "os._exit(0)": ("has died", "exiting improperly"),
    "SIGKILL": ("has died", "exited on signal 9"),
    "SIGSEGV": ("has died", "exited on signal 11"),
    "SIGSTOP": ("has not answered for", "never"),
    "endless loop": ("has not come to a collective for", "never"),
}
# Of one that is waited for at the start.
_MISSING = {
    "sys.exit(0)": "has ended before it came to ddp_gd.init",
    "os._exit(0)": "has ended before it came to ddp_gd.init",
    "SIGSTOP": "is stopped",
    "endless loop": "has not come to ddp_gd.init",
}
# Where these ask a training to stop, which exit status that leads to.
ASKED = {"SIGTERM": 143, "SIGUSR1": 143, "SIGINT": 130}
_STOPPED = re.compile(
    r"^ddp_gd: stopped (?:by (\w+)|as asked) after .+; saved in (\S+)\. Go on", re.M
)
_DEATHS = ("os._exit(3)", "os._exit(0)", "SIGKILL", "SIGSEGV")
WAITED_FOR = tuple(_MISSING)


def ours(text: str) -> list[Blame]:
    """The messages of ddp_gd that end a job."""
    text, found = _TAG.sub("", text), []
    for start in _ANY.finditer(text):
        blame = Blame(None, "", "")
        for pattern in _OURS:
            if match := pattern.match(text, start.start()):
                blame = Blame(int(match[1]), match[2], match[3])
        found.append(blame)
    return found


def have_waited(text: str) -> bool:
    """Whether workers waited for one that did not start, up to their limit."""
    return any("for it to start" in blame.reason for blame in ours(text))


def launchers(text: str) -> list[Blame]:
    """What Open MPI's launcher says of workers; the first one is what it ended the job for."""
    return [
        Blame(int(match[1] or match[4]), match[2] or "", match[3] or match[6])
        for match in _LAUNCHERS.finditer(_TAG.sub("", text))
    ]


def saved(text: str) -> tuple[str, str] | None:
    """By which signal a training says that it was stopped, and in which file it is saved."""
    found = _STOPPED.findall(_TAG.sub("", text))
    return (found[0][0] or "SIGUSR1", found[0][1]) if len(found) == 1 else None


def wrong(kind: str, phase: str, rank: int, host: str, text: str) -> str | None:
    """What is wrong with what a job said; None if it is as required above.

    Args:
        kind: of the fault.
        phase: of the fault.
        rank: the worker that was struck.
        host: its.
        text: all that the job printed.
    """
    said, told = ours(text), launchers(text)
    if kind in ASKED:
        stopped = saved(text)
        # Rank 0 says so, which knows of another worker's signal only whether it came by hand.
        names = {kind, "SIGTERM"} - ({"SIGTERM"} if kind == "SIGINT" else set())
        if said or stopped is None or stopped[0] not in names:
            return "not said, or not once, that it was stopped and saved"
        return None
    waited_for = phase == "launch" and kind in WAITED_FOR and have_waited(text)
    if len(said) > 1:
        return "said more than once"
    our_reason, launchers_reason = _REASONS[kind]
    our_reason = _MISSING[kind] if waited_for else our_reason
    launcher = bool(told) and told[0].rank == rank and _has(launchers_reason, told[0])
    if not said:
        alone = phase == "launch" or (phase == "start" and kind in _DEATHS)
        if not alone and (phase, kind) != ("exit", "sys.exit(3)"):
            return "no message"
        return None if launcher else "the launcher names another worker, or reason"
    blame = said[0]
    if blame.host != host:
        return "wrong or no host"
    if blame.rank != rank:
        return "wrong or no worker named"
    if not _has(our_reason, blame):
        return "wrong or no reason"
    if kind in _DEATHS and not launcher and not waited_for:
        return "the launcher names another worker, or reason"
    return None


def _has(pattern: str, blame: Blame) -> bool:
    return re.search(pattern, blame.reason) is not None
