"""`python -m ddp_gd.contrast`: what batch_size is. This file is intentionally kept short."""

from __future__ import annotations

from .command import main as run_command
from .config import ContrastConfig


def main() -> None:
    """Contrast as the command line says, on all workers of the job."""
    run_command(ContrastConfig, "contrast", "comparison")


if __name__ == "__main__":
    main()
