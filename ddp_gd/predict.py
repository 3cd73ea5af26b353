"""`python -m ddp_gd.predict`: predict with a saved model. This file is intentionally kept short."""

from __future__ import annotations

from .command import main as run_command
from .config import PredictConfig


def main() -> None:
    """Predict as the command line says, on all workers of the job."""
    run_command(PredictConfig, "predict", "inference")


if __name__ == "__main__":
    main()
