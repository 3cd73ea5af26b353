"""`python -m ddp_gd.predict`: predict with a saved model. This file is intentionally kept short."""

import sys

import ddp_gd
from ddp_gd.commands import cli
from ddp_gd.commands.config import PredictConfig

if __name__ == "__main__":
    cli.start(PredictConfig, "predict", "ddp_gd.commands.predict")
else:  # imported as a module, it would hide the function of its name
    sys.modules[__name__] = ddp_gd.predict  # type: ignore[assignment]
