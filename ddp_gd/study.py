"""`python -m ddp_gd.study`: many settings compared. This file is intentionally kept short."""

from ddp_gd.commands import cli
from ddp_gd.commands.config import StudyConfig

if __name__ == "__main__":
    cli.start(StudyConfig, "study", "ddp_gd.commands.study.main")
