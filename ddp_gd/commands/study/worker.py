"""Starts the trainings of a study in this process: `python -m ddp_gd.study` runs it as a job."""

from ddp_gd.commands import cli
from ddp_gd.commands.config import StudyConfig

if __name__ == "__main__":
    cli.start(StudyConfig, "study", "ddp_gd.commands.study.training")
