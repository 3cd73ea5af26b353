"""`python -m ddp_gd.train`: train a model on a file. This file is intentionally kept short."""

from ddp_gd.commands import cli
from ddp_gd.commands.config import TrainConfig

if __name__ == "__main__":
    cli.start(TrainConfig, "train", "ddp_gd.commands.train")
