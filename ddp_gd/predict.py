"""`python -m ddp_gd.predict`: predict with a saved model. This file is intentionally kept short."""

from __future__ import annotations

import sys

import ddp_gd
from ddp_gd.commands import cli
from ddp_gd.commands.config import PredictConfig


def main() -> None:
    """Predict as the command line says, on all workers of the job."""
    options = cli.parse(PredictConfig, "predict")
    from ddp_gd.commands.predict import run  # with all that it imports: not for --help

    cli.execute(run, options)


if __name__ == "__main__":
    main()
else:  # imported as a module, it would hide the function of its name
    sys.modules[__name__] = ddp_gd.predict  # type: ignore[assignment]
