"""Which room may import which, read from the source."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ddp_gd"
# A room imports from those above its line, and from itself. The last line: `python -m`.
ORDER = """
errors
settings files
loading
comm
job
batching
steps data
training
reporting
commands
train verify contrast study predict report run doctor
__main__
"""
LINE = {room: i for i, rooms in enumerate(ORDER.split("\n")) for room in rooms.split()}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
ONLY_IN = {
    "horovod": {"comm.horovod"},
    "mpi4py": {"comm.mpi", "comm.board"},
    "matplotlib": {
        "reporting.plots",
        "reporting.plot_style",
        "commands.study.plot",
        "commands.contrast.plot",
    },
}
LIGHT = {
    "errors",
    "settings",
    "files",
    "loading",
    "comm.base",
    "comm.environment",
    "commands.config",
}


def _imports(name: str) -> set[str]:
    """The modules that a module imports, wherever in its source; our own as `ddp_gd.…`."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: imports are written whole"
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                is_module = member.removeprefix("ddp_gd.") in MODULES
                found.add(member if is_module else str(node.module))
    return found


def _ours(name: str) -> set[str]:
    return {m.removeprefix("ddp_gd.") for m in _imports(name) if m.startswith("ddp_gd.")}


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_from_above_only(name: str) -> None:
    """Every module imports from its own room and from rooms above it, and nothing else of ours."""
    room = name.split(".")[0]
    for other in {m.split(".")[0] for m in _ours(name)} - {room}:
        assert LINE[other] < LINE[room], f"{name} imports from {other}"
    imports = {m.split(".")[0] for m in _imports(name)}
    for library, where in ONLY_IN.items():
        assert name in where or library not in imports
    if name in LIGHT:
        assert imports & {"tensorflow", "keras"} == set()


def test_no_module_needs_itself() -> None:
    """Inside the rooms, too, imports go one way."""
    graph = {name: _ours(name) - {name} for name in MODULES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


def test_a_house_one_can_see() -> None:
    """At most ten rooms, and at most 14 modules in a folder."""
    folders = [folder for folder in PACKAGE.rglob("*") if list(folder.glob("*.py"))]
    assert len([folder for folder in folders if folder.parent == PACKAGE]) <= 10
    for folder in [PACKAGE, *folders]:
        assert len([file for file in folder.glob("*.py") if file.name != "__init__.py"]) <= 14


@pytest.mark.parametrize("module", ["ddp_gd", "ddp_gd.comm", "ddp_gd.batching.plan"])
def test_a_light_import_loads_no_framework(module: str) -> None:
    """Importing the package or its light modules loads neither TensorFlow nor Keras nor MPI."""
    heavy = {"tensorflow", "keras", "horovod", "mpi4py", "matplotlib"}
    program = f"import {module}, sys; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", program], check=True)
