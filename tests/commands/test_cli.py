"""What the commands have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_gd.commands import cli
from ddp_gd.commands.config import PredictConfig, StudyConfig, TrainConfig
from ddp_gd.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("batch_size=500 is larger than the 397", "--batch-size 500 is larger than the 397"),
        ("micro_batch_size=0 must be above 0.", "--micro-batch-size 0 must be above 0."),
        ("Give lr=0.1.", "Give --lr 0.1."),
        ("Give 'mean', or missing='drop'", "Give 'mean', or --missing drop"),
        ("name it with categorical=['x', 'a b']", "name it with --categorical x 'a b'"),
        ("in its place (cache=False).", "in its place (--no-cache)."),
        ("go on with resume=True, or", "go on with --resume, or"),
        # Not an option of this command, no value, no word of its own, or no Python:
        ("shuffle=True must be", "shuffle=True must be"),
        ("give seed=NUMBER", "give seed=NUMBER"),
        ("micro-batch_size=3, x/seed=3", "micro-batch_size=3, x/seed=3"),
        ("seed=3/x.csv, seed=3.csv", "seed=3/x.csv, seed=3.csv"),
        # Quoted, or Python to be typed:
        ("x.csv has 'seed=3', \"seed=3\"", "x.csv has 'seed=3', \"seed=3\""),
        (r"x.csv has 'it\'s seed=3'", r"x.csv has 'it\'s seed=3'"),
        ("Call ddp_gd.init(backend='mpi', bitwise=True).",) * 2,
        # The name of a file that was typed:
        ("my seed=3 data/x.csv has no column 'y'",) * 2,
    ],
)
def test_messages_name_options_as_they_are_typed(said: str, shown: str) -> None:
    """An argument of the library becomes the option, and nothing else in a message changes."""
    assert cli.translate(said, TrainConfig(data=("my seed=3 data",))) == shown


def test_a_message_names_the_options_of_its_command() -> None:
    """A study has lists of values; ddp_gd.predict has no seed."""
    said = "batch_size=500 and seed=3"
    assert cli.translate(said, StudyConfig()) == "--batch-sizes 500 and --seed 3"
    options = PredictConfig("model.keras", ("x.csv",), "out.csv")
    assert cli.translate(said, options) == "--batch-size 500 and seed=3"


def test_an_error_stays_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class, cause and traceback are as they were raised."""
    monkeypatch.setenv("DDP_GD_TRACEBACK", "1")
    raised = []

    def run(options: TrainConfig) -> None:
        try:
            Path(options.data[0]).read_text()
        except OSError as cause:
            raised.append(DataError("Give cache=False."))
            raise raised[0] from cause

    with pytest.raises(DataError, match=r"^Give --no-cache[.]$") as caught:
        cli.execute(run, TrainConfig(data=("nowhere.csv",)))
    assert caught.value is raised[0]
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert any(entry.name == "run" for entry in caught.traceback)


def test_an_error_ends_a_command_with_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr, and the status of its class."""

    def run(options: TrainConfig) -> None:
        raise ConfigError(f"batch_size={options.batch_size} is too much.")

    with pytest.raises(SystemExit, match="2"):
        cli.execute(run, TrainConfig())
    assert capsys.readouterr().err == "ddp_gd: error: --batch-size 32 is too much.\n"
