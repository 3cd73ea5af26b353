"""`python -m ddp_gd.train`: train a model on a file. This file is intentionally kept short."""

from ddp_gd.commands import cli
from ddp_gd.commands.config import TrainConfig

if __name__ == "__main__":
    options = cli.parse(TrainConfig, "train")
    from ddp_gd.commands.train import run  # with all that it imports: not for --help

    cli.execute(run, options)
