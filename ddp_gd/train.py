"""`python -m ddp_gd.train`: train a model on a file. This file is intentionally kept short."""

from __future__ import annotations

from .command import main as run_command
from .config import TrainConfig


def main() -> None:
    """Train as the command line says, on all workers of the job."""
    run_command(TrainConfig, "train", "experiment")


if __name__ == "__main__":
    main()
