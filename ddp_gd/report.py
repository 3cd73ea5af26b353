"""`python -m ddp_gd.report`: pages about saved runs. This file is intentionally kept short."""

from __future__ import annotations

from .command import main as run_command
from .config import ReportConfig


def main() -> None:
    """Draw what the command line names."""
    run_command(ReportConfig, "report", "page")


if __name__ == "__main__":
    main()
