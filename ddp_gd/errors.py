"""Every exception that this package raises on purpose.

::

    DdpGdError
    ├── ConfigError     (ValueError)       an argument or option that cannot be used
    ├── DataError       (ValueError)       a file, column, cell or array that cannot be used
    ├── ModelError      (ValueError)       a model that cannot be trained exactly
    ├── LaunchError     (RuntimeError)     the processes of the job do not find each other
    ├── MismatchError   (RuntimeError)     a worker was given something other than rank 0
    ├── ReplicaError    (RuntimeError)     the workers' copies of the model parted
    ├── AuditError      (RuntimeError)     a worker computed something wrong
    ├── NumericsError   (ArithmeticError)  loss or gradient are no longer finite numbers
    └── CheckpointError (RuntimeError)     a checkpoint can't be written, read or continued

Each also is the built-in exception in brackets, so code that catches those keeps working. A message
quotes the offending value, says what was expected, and ends with what to do.
"""


class DdpGdError(Exception):
    """Base of every exception that this package raises on purpose."""


class ConfigError(DdpGdError, ValueError):
    """An argument or option that cannot be used."""


class DataError(DdpGdError, ValueError):
    """A file, column, cell or array that cannot be used."""


class ModelError(DdpGdError, ValueError):
    """A model, loss or metric that cannot be trained exactly on shares of a mini-batch."""


class LaunchError(DdpGdError, RuntimeError):
    """The processes of the job do not find each other, or a backend cannot start."""


class MismatchError(DdpGdError, RuntimeError):
    """A worker was given another program, data set, model or setting than rank 0."""


class ReplicaError(DdpGdError, RuntimeError):
    """The workers' copies of the model are no longer the same."""


class AuditError(DdpGdError, RuntimeError):
    """A worker computed something wrong, and an audit found it.

    Args:
        text: the message.
        ranks: who did; empty where it can't be told.
        hosts: theirs, each once.
    """

    def __init__(self, text: str, ranks: tuple[int, ...] = (), hosts: tuple[str, ...] = ()):
        super().__init__(text)
        self.ranks = ranks
        self.hosts = hosts


class NumericsError(DdpGdError, ArithmeticError):
    """The loss or its gradient is NaN or infinite."""


class CheckpointError(DdpGdError, RuntimeError):
    """A checkpoint that can't be written or read, or is of another training."""


AUDIT_STATUS = 4


def exit_status(error: BaseException) -> int:
    """130 for Ctrl-C, 4 where an audit found a wrong result, 2 for what would fail again in the
    same way, 1 for everything else.

    A bit of memory that flips, or a disk that is full, may be all right when the job starts again.
    """
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, AuditError):
        return AUDIT_STATUS
    not_written = isinstance(error, CheckpointError) and isinstance(error.__cause__, OSError)
    if isinstance(error, (LaunchError, ReplicaError)) or not_written:
        return 1
    return 2 if isinstance(error, DdpGdError) else 1
