"""`python -m ddp_gd.contrast`: what batch_size is. This file is intentionally kept short."""

from ddp_gd.commands import cli
from ddp_gd.commands.config import ContrastConfig

if __name__ == "__main__":
    cli.start(ContrastConfig, "contrast", "ddp_gd.commands.contrast.main")
