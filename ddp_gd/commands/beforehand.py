"""What can be told to be wrong before TensorFlow is loaded, which takes seconds."""

from pathlib import Path
from typing import Any

from ddp_gd.commands import result_folder
from ddp_gd.commands.config import (
    ContrastConfig,
    PredictConfig,
    StudyConfig,
    TaskConfig,
    TrainConfig,
)
from ddp_gd.data import origin, table
from ddp_gd.data.request import Request
from ddp_gd.errors import ConfigError
from ddp_gd.files import require_new_file


def check(config: Any) -> None:
    """Look at the files and columns that the options of a command name. Nothing is written.

    Raises:
        ConfigError, DataError: one can't be used.
    """
    if isinstance(config, TrainConfig):
        result_folder.choose(config.out, config.resume)
        _check_task(config, request_of(config))
    elif isinstance(config, StudyConfig):
        options = config.training(config.batch_sizes[0], config.lr[0], config.optimizers[0])
        _check_task(config, request_of(options))
    elif isinstance(config, ContrastConfig):
        result_folder.choose(config.out)
    elif isinstance(config, PredictConfig):
        require_new_file("out", config.out)
        if not Path(config.model).is_file():
            raise ConfigError(f"--model {config.model}: there is no such file.")
        origin.find(Request(source=config.data, targets_needed=False))


def request_of(config: TrainConfig) -> Request:
    """Return the data that these options ask for."""
    return Request(
        source=config.data,
        target=config.target,
        features=config.features or None,
        exclude=config.exclude,
        sample_weight=config.sample_weight,
        categorical=config.categorical,
        missing=config.missing,
        dtype=config.dtype,
        image_size=config.image_size,
    )


def _check_task(config: TaskConfig, request: Request) -> None:
    found = origin.find(request)
    if found.kind == "table":
        table.open_table(found.paths, found.request)
    file, colon, _ = config.model.rpartition(":")
    if colon and ".py" in file and not Path(file).is_file():
        raise ConfigError(f"model {config.model!r}: there is no file {file!r}")
