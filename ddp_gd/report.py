"""`python -m ddp_gd.report`: pages about saved runs. This file is intentionally kept short."""

from ddp_gd.commands import cli
from ddp_gd.commands.config import ReportConfig

if __name__ == "__main__":
    options = cli.parse(ReportConfig, "report")
    from ddp_gd.commands.report import run  # with all that it imports: not for --help

    cli.execute(run, options)
