"""`ddp-gd COMMAND` and `python -m ddp_gd COMMAND`: all commands by name."""

import os
import re
import runpy
import shlex
import sys
from collections.abc import Sequence

import ddp_gd
from ddp_gd import settings
from ddp_gd.commands import cli

COMMANDS = {
    "train": "train a Keras model on a file or a built-in data set",
    "predict": "predict with a model that was saved",
    "report": "draw a page about a training, or compare several",
    "run": "start a script of your own as a job of several workers",
    "verify": "train at several numbers of workers, and compare",
    "study": "train with many batch sizes and learning rates",
    "contrast": "show what batch_size is, and what it is not",
    "doctor": "say what is installed, whether it works, and what mends it",
}
# `-np N` starts these as a job. The others start jobs themselves, or need none.
_JOBS = ("train", "predict", "contrast")
_WORKERS = ("-np", "--np", "-n")


def main() -> int:
    """Run the command that the command line names; return the exit status."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help"):
        print("usage: ddp-gd COMMAND [-np N] [options]\n")
        for name, about in COMMANDS.items():
            print(f"  {name:<9} {about}")
        print(
            "\n  -np N     train, predict, contrast: with N workers, on this machine"
            "\n  --help    after a command: its options"
            "\n  --version"
        )
        return 0
    if command == "--version":
        print(f"ddp_gd {ddp_gd.__version__}")
        return 0
    if command not in COMMANDS:
        return _refuse(f"there is no command {command!r}; there are {', '.join(COMMANDS)}.")
    os.environ.setdefault(settings.COMMAND, shlex.join(["ddp-gd", *sys.argv[1:]]))
    if command in _JOBS:
        try:
            workers, arguments = take_workers(arguments)
        except ValueError as error:
            return _refuse(str(error))
        if workers > 1:
            from ddp_gd.commands.run import start

            print(f"ddp_gd: starting {workers} workers", file=sys.stderr, flush=True)
            return cli.status_of(lambda: start(workers, ["-m", f"ddp_gd.{command}", *arguments]))
    sys.argv[1:] = arguments
    runpy.run_module(f"ddp_gd.{command}", run_name="__main__", alter_sys=True)
    return 0


def take_workers(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Take `-np N` out of a command line, wherever it stands before `--`.

    Returns:
        N, or 1 where it isn't there, and the other arguments.

    Raises:
        ValueError: N is not the number of workers.
    """
    for place, word in enumerate(arguments):
        if word == "--":
            return 1, [*arguments[:place], *arguments[place + 1 :]]
        name, equals, value = word.partition("=")
        if name not in _WORKERS:
            continue
        after = place + (1 if equals else 2)
        value = value if equals else "".join(arguments[place + 1 : place + 2])
        if not re.fullmatch(r"[1-9][0-9]{0,5}", value):
            raise ValueError(
                f"{name} needs the number of workers, a whole number of at least 1, not {value!r}."
            )
        rest = [*arguments[:place], *arguments[after:]]
        if "--" in rest[place:]:  # what comes after it is as it is
            rest.remove("--")
        return int(value), rest
    return 1, list(arguments)


def _refuse(text: str) -> int:
    print(f"ddp_gd: error: {text}\nSee: ddp-gd --help", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
