"""Runs a command of the package in the test's own process."""

from __future__ import annotations

import sys
from types import ModuleType


def run(module: ModuleType, *arguments: object) -> int | str | None:
    """Run `main` of a command's module with these arguments, and return the exit status."""
    argv, sys.argv = sys.argv, [f"{module.__name__}.py", *map(str, arguments)]
    try:
        module.main()
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = argv
    return 0
