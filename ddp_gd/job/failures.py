"""An exception that nobody catches on any worker ends the job, and is shown once."""

import socket
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from ddp_gd import settings
from ddp_gd.errors import DdpGdError, exit_status

# Where libraries lie, this one too.
_ELSEWHERE = (
    str(Path(__file__).parents[1]),
    *(sysconfig.get_path(name) for name in ("stdlib", "platlib", "purelib")),
)


def show_briefly() -> None:
    """Let an error of this package end this process with its message, not with a traceback.

    The message says what to do; of the many functions in between the user's own line alone helps.
    """

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, DdpGdError) or settings.shows_traceback():
            sys.__excepthook__(kind, error, trace)
            return
        own = [
            e for e in traceback.extract_tb(trace) if not e.filename.startswith(("<", *_ELSEWHERE))
        ]
        where = f"    {own[-1].filename}, line {own[-1].lineno}: {own[-1].line}\n" if own else ""
        sys.stderr.write(f"ddp_gd: error: {error}\n{where}")

    sys.excepthook = show


def end_job_on_exception(
    rank: int,
    size: int,
    abort: Callable[[int], object],
    speaks: Callable[[], bool] | None = None,
) -> None:
    """Let an exception that nobody catches on this worker end the job, and be shown.

    A worker that just died would leave the others waiting in their next collective for ever.
    `SystemExit` does not come here; a worker that leaves alone is noticed by the others (`watch`).

    Args:
        rank: this worker's number.
        size: how many workers there are.
        abort: ends the job with an exit status.
        speaks: tells whether this worker should show its exception, or another one shows the same.
            By default lower ranks have the time to do so, and to end this worker meanwhile.
    """

    def end_job(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        where = f" (rank {rank} on {socket.gethostname()})"
        if isinstance(error, DdpGdError) and not settings.shows_traceback():
            # Of what is wrong on all of them rank 0 speaks: no worker is to blame.
            text = f"ddp_gd: error{where if rank > 0 else ''}: {error}\n"
        else:
            lines = "".join(traceback.format_exception(kind, error, trace))
            text = f"ddp_gd: this ended the job{where}:\n{lines}"
        try:
            if speaks is None:
                time.sleep(1 + rank / size if rank > 0 else 0)
            if speaks is None or speaks():
                sys.stdout.flush()
                sys.stderr.write(text)  # in one piece: other workers write too
                sys.stderr.flush()
            else:
                time.sleep(3)  # the launcher ends this worker, too
        finally:
            abort(exit_status(error))

    sys.excepthook = end_job
