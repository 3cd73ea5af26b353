"""`python -m ddp_gd.report`: pages about saved runs. This file is intentionally kept short."""

from ddp_gd.commands import cli
from ddp_gd.commands.config import ReportConfig

if __name__ == "__main__":
    cli.start(ReportConfig, "report", "ddp_gd.commands.report")
