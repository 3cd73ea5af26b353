"""Running other programs: pip, compilers, launchers."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class Problem(Exception):
    """Why something can't be had, in a sentence."""


def folder() -> Path:
    """The folder with the programs of this Python's environment."""
    return Path(sys.executable).parent  # not resolved: an environment's python is a link


def run(words: Sequence[str], env: Mapping[str, str] | None = None, seconds: float = 3600) -> bool:
    """Run a program; tell whether it ended well. What it prints goes where ours does."""
    sys.stdout.flush()
    try:
        return subprocess.run(words, env=env, timeout=seconds, check=False).returncode == 0  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        say(str(error))
        return False


def output(words: Sequence[str]) -> str:
    """Return what a program prints; nothing, if it can't be started."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout  # noqa: S603
    except OSError:
        return ""


def pip(*words: str, env: Mapping[str, str] | None = None) -> bool:
    """Run pip for this environment; tell whether it ended well.

    Raises:
        Problem: there is none.
    """
    if importlib.util.find_spec("pip") is None:
        raise Problem("this environment has no pip: python -m ensurepip")
    quiet = ["--disable-pip-version-check", "--no-input"]
    return run([sys.executable, "-m", "pip", *quiet, *words], env)


def with_own_programs() -> str:
    """Return PATH with the environment's programs before all others."""
    return f"{folder()}{os.pathsep}{os.environ.get('PATH', '')}"


def say(text: str) -> None:
    """Print a line."""
    print(f"ddp_gd: {text}", flush=True)
