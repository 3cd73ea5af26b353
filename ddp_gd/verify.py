"""`python -m ddp_gd.verify`: are these trainings equal? This file is intentionally kept short."""

import sys

from ddp_gd.commands import cli
from ddp_gd.commands.verify import main

if __name__ == "__main__":
    sys.exit(cli.status_of(main))
