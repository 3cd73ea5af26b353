"""How workers exchange tensors: one protocol, several backends.

Importing this package loads none of TensorFlow, Horovod and mpi4py; opening a backend does.
"""

import contextlib
import importlib
import sys

from ddp_gd.comm import environment
from ddp_gd.comm.base import Communicator
from ddp_gd.errors import ConfigError, LaunchError
from ddp_gd.loading import quietly

_BACKENDS = {
    "horovod": "HorovodCommunicator",
    "mpi": "MpiCommunicator",
    "single": "SingleCommunicator",
}


def open_communicator(name: str = "auto") -> Communicator:
    """Start a backend and return its communicator.

    Args:
        name: `"horovod"`, `"mpi"`, `"single"`, or `"auto"`: Horovod when the launcher started
            several processes (MPI when Horovod cannot be imported), single otherwise.

    Raises:
        ConfigError: there is no backend of that name.
        LaunchError: the backend cannot start, or sees fewer processes than were started.
    """
    if name not in ("auto", *_BACKENDS):
        raise ConfigError(
            f"backend {name!r} does not exist; choose 'auto', 'horovod', 'mpi' or 'single'."
        )
    environment.set_cpu_defaults()
    if name != "auto":
        return _open(name)
    if environment.launch().size == 1:
        return _open("single")
    try:
        with quietly():
            importlib.import_module("ddp_gd.comm.horovod")
    except Exception as reason:  # an op library that does not load raises TensorFlow's own errors
        communicator = _open("mpi")
        if communicator.rank == 0:
            print(f"ddp_gd: using mpi4py, Horovod cannot be loaded: {reason}", file=sys.stderr)
        return communicator
    return _open("horovod")


def _open(name: str) -> Communicator:
    try:
        # Importing mpi4py already waits for the other workers: whatever is said there is shown.
        with quietly() if name == "horovod" else contextlib.nullcontext():
            backend = importlib.import_module(f"ddp_gd.comm.{name}")
        communicator: Communicator = getattr(backend, _BACKENDS[name])()
    except LaunchError:
        raise
    except Exception as error:
        raise LaunchError(
            f"backend {name!r} cannot start: {error}. Install what it needs (launch/setup.sh "
            "builds Horovod; mpi4py needs an MPI), or choose another backend."
        ) from error
    environment.require_all(name, communicator.size)
    return communicator
