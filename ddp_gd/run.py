"""`python -m ddp_gd.run`: a script as a job of workers. This file is intentionally kept short."""

import sys

from ddp_gd.commands import cli
from ddp_gd.commands.run import main

if __name__ == "__main__":
    sys.exit(cli.status_of(lambda: main(sys.argv[1:])))
