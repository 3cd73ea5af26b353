"""`python -m ddp_gd.contrast`: what batch_size is. This file is intentionally kept short."""

from ddp_gd.commands import cli
from ddp_gd.commands.config import ContrastConfig

if __name__ == "__main__":
    options = cli.parse(ContrastConfig, "contrast")
    from ddp_gd.commands.contrast.main import run  # with all that it imports: not for --help

    cli.execute(run, options)
