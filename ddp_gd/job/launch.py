"""`launch`: a function run by the workers of a job of its own, from a notebook or a script."""

import builtins
import contextlib
import dis
import importlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from ddp_gd.comm import environment
from ddp_gd.errors import ConfigError, LaunchError
from ddp_gd.job import mpirun
from ddp_gd.job.launcher import Job

_CALL, _RESULT = "call", "result"  # a .json and a .npz file each


def launch(function: Callable[..., Any], np: int = 4, args: Sequence[Any] = ()) -> Any:
    """Run `function(*args)` on `np` new workers of this machine, and return rank 0's result.

    The workers are processes of their own, started through MPI: this process keeps its memory, its
    TensorFlow and its GPUs. They print where this process prints.

    Args:
        function: a function of a module that can be imported, or one that is written in this
            notebook or script. The latter is handed over as source text: it imports, and defines,
            all that it uses inside itself.
        np: how many workers; 1 is one other process.
        args: numbers, texts, None, NumPy arrays, and lists, tuples and dicts of them.

    Returns:
        What rank 0's call returned, of the same kinds; Keras's History as its dict.

    Raises:
        ConfigError: the function, an argument or the result can't be handed over; or this process
            is itself a worker.
        LaunchError: a worker failed. What it said has been printed.
    """
    job = environment.launch()
    if job.size > 1:
        raise ConfigError(f"launch: this process is one of {job.size} workers already.")
    if not isinstance(np, int) or np < 1:
        raise ConfigError(f"launch: np={np!r} must be a whole number of at least 1.")
    with tempfile.TemporaryDirectory(prefix="ddp_gd-launch-") as name:
        folder = Path(name)
        _write(folder, _CALL, {"function": _described(function), "args": list(args)})
        words = mpirun.command(np, [sys.executable, "-m", "ddp_gd.job.launch", name])
        status, said = _run(words, mpirun.environment() | {"PYTHONPATH": _path()})
        if status:
            last = "\n".join(said.splitlines()[-15:])
            raise LaunchError(
                f"the workers ended with exit status {status}. The end of it:\n{last}"
            )
        return _read(folder, _RESULT)


def _run(words: Sequence[str], environ: dict[str, str]) -> tuple[int, str]:
    """Run the job; return its exit status, and what it wrote on standard error."""
    said: list[str] = []

    def show_error(block: bytes) -> None:
        said.append(block.decode(errors="replace"))
        sys.stderr.write(said[-1])
        sys.stderr.flush()

    # Not the file descriptors: a notebook shows what is written to Python's streams.
    job = Job(words, environ, stdout=subprocess.PIPE, show_error=show_error)
    try:
        for line in job.lines():
            sys.stdout.write(line)
            sys.stdout.flush()
        return job.wait(), "".join(said)
    except BaseException:
        job.end()
        job.wait()
        raise


def _path() -> str:
    """This process's path of modules, for the workers."""
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)


def _described(function: Callable[..., Any]) -> dict[str, str]:
    """Say how a worker gets the function: by import, or by its source."""
    if not isinstance(function, types.FunctionType):
        raise ConfigError(f"launch: {function!r} is no function written in Python.")
    name = function.__qualname__
    if function.__module__ != "__main__" and name.isidentifier():
        return {"module": function.__module__, "name": name}
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except OSError as error:
        raise ConfigError(f"launch: the source of {name} can't be found ({error}).") from error
    if not source.startswith("def "):
        raise ConfigError(f"launch: {name} must be a plain function: def {name}(...), undecorated.")
    outside = sorted({*function.__code__.co_freevars, *_globals(function.__code__)})
    if outside:
        raise ConfigError(
            f"launch: {name} uses {', '.join(outside)} from outside of it, which the workers don't "
            "have: import or define that inside of it, hand it over in args, or put the function "
            "into a module, a .py file, and import it."
        )
    return {"source": source, "name": function.__name__}


def _globals(code: types.CodeType) -> Iterator[str]:
    """The global names that a function reads, without Python's own."""
    for instruction in _instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            name = str(instruction.argval)
            if not hasattr(builtins, name):
                yield name


def _instructions(code: types.CodeType) -> Iterator[Any]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def _write(folder: Path, name: str, value: Any) -> None:
    """Write a value as JSON, and the arrays in it beside that."""
    arrays: list[numpy.ndarray] = []
    text = json.dumps(_encoded(value, arrays))
    with (folder / f"{name}.npz").open("wb") as file:
        numpy.savez(file, *arrays)
    (folder / f"{name}.json").write_text(text)


def _read(folder: Path, name: str) -> Any:
    path = folder / f"{name}.json"
    if not path.exists():
        raise LaunchError("the workers ended, but rank 0 returned nothing.")
    with numpy.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        return _decoded(json.loads(path.read_text()), arrays)


def _encoded(value: Any, arrays: list[numpy.ndarray]) -> Any:
    if type(value).__name__ == "History" and hasattr(value, "history"):
        value = value.history
    if isinstance(value, numpy.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encoded(entry, arrays) for entry in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encoded(entry, arrays) for key, entry in value.items()}}
    raise ConfigError(
        f"launch: a {type(value).__name__} can't be handed over between processes: give numbers, "
        "texts, None, NumPy arrays, and lists, tuples and dicts (of texts) of them."
    )


def _decoded(value: Any, arrays: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[f"arr_{content}"]
    if kind == "dict":
        return {key: _decoded(entry, arrays) for key, entry in content.items()}
    entries = [_decoded(entry, arrays) for entry in content]
    return tuple(entries) if kind == "tuple" else entries


def _work(folder: Path) -> None:
    """Call the function on this worker; rank 0 leaves its result in the folder."""
    call = _read(folder, _CALL)
    described, args = call["function"], call["args"]
    if "source" in described:
        # A name of its own for what is run: tracebacks show its lines, and TensorFlow reads them.
        file = folder / f"{described['name']}.py"
        with contextlib.suppress(FileExistsError), file.open("x") as new:
            new.write(described["source"])
        names: dict[str, Any] = {"__name__": "ddp_gd_launched"}
        exec(compile(described["source"], str(file), "exec"), names)  # noqa: S102 - the caller's own
        function = names[described["name"]]
    else:
        function = getattr(importlib.import_module(described["module"]), described["name"])
    result = function(*args)
    if environment.launch().rank == 0:
        _write(folder, _RESULT, result)


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
