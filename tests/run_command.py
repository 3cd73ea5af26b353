"""Runs a command of the package in the test's own process."""

from __future__ import annotations

import runpy
import sys


def run_command(command: str, *arguments: object) -> int | str | None:
    """Run `python -m ddp_gd.<command>` with these arguments, and return the exit status."""
    argv, sys.argv = sys.argv, [f"{command}.py", *map(str, arguments)]
    sys.modules.pop(f"ddp_gd.{command}", None)  # Python warns of one that is there already
    try:
        runpy.run_module(f"ddp_gd.{command}", run_name="__main__", alter_sys=False)
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = argv
    return 0
