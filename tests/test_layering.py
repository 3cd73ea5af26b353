"""Which module may import which, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ddp_gd"
# A module imports only from lines above its own; those of one line don't import each other.
ORDER = """
errors tree cores interrupts processes
config
cache csvfiles selection
parquetfiles grid
tables
arrayfiles request
plan split data progress bits checkpoint
records
preprocessing
comm.attendance comm.environment
comm.base
comm.tensors comm.board
comm
plots
comm.single comm.horovod comm.mpi
watch gpus starting
runtime
arrays shuffle loading
items rows
batches
losses state reduction gradientnoise
step
loop
replicas
sources trace times
hooks
snapshot
epochs
training prediction
models
schemes task
measures
plots.style
plots.losses plots.workers plots.contrast plots.study
page
results
experiment inference comparison
command mpirun
trials
contrast verify study
train predict report
"""
LINE = {name: i for i, names in enumerate(ORDER.split("\n")) for name in names.split()}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
ONLY_IN = {
    "horovod": {"comm.horovod"},
    "mpi4py": {"comm.mpi", "comm.board"},
    "matplotlib": {f"plots.{name}" for name in ["style", "losses", "workers", "contrast", "study"]},
}
LIGHT = {"errors", "config", "plan", "split", "comm", "comm.base", "comm.environment"}


def _imports(name: str) -> set[str]:
    """The modules that a module imports, wherever in its source; our own as `ddp_gd.…`."""
    own = ["ddp_gd", *name.split(".")]
    if MODULES[name].name != "__init__.py":
        own.pop()
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = own[: len(own) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                member = f"{base}.{alias.name}"
                found.add(member if member.removeprefix("ddp_gd.") in MODULES else base)
    return found


@pytest.mark.parametrize("name", [n for n in MODULES if n not in ("", "__init__")])
def test_a_module_imports_from_above_only(name: str) -> None:
    """Every module has its place in the order and imports nothing that stands below or beside."""
    assert name in LINE, f"give {name} its place in ORDER"
    imports = _imports(name)
    ours = {m.removeprefix("ddp_gd.") for m in imports if m.startswith("ddp_gd.")}
    assert {m for m in ours if LINE[m] >= LINE[name]} == set()
    for library, where in ONLY_IN.items():
        assert name in where or library not in {m.split(".")[0] for m in imports}
    if name in LIGHT:
        assert {m.split(".")[0] for m in imports} & {"tensorflow", "keras"} == set()


@pytest.mark.parametrize("module", ["ddp_gd", "ddp_gd.comm", "ddp_gd.plan", "ddp_gd.errors"])
def test_a_light_import_loads_no_framework(module: str) -> None:
    """Importing the package or its light modules loads neither TensorFlow nor Keras nor MPI."""
    heavy = {"tensorflow", "keras", "horovod", "mpi4py", "matplotlib"}
    program = f"import {module}, sys; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", program], check=True)
