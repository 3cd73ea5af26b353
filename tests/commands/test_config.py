import dataclasses

import pytest

from ddp_gd.commands.config import TrainConfig
from ddp_gd.errors import ConfigError


@pytest.mark.parametrize(
    ("field", "value", "option"),
    [
        ("epochs", 0, "--epochs is 0"),
        ("lr", 0.0, "--lr is 0.0"),
        ("lr", float("nan"), "--lr is nan"),
        ("decay", -0.1, "--decay is -0.1"),
        ("decay", float("inf"), "--decay is inf"),
        ("momentum", 1.0, "--momentum is 1.0"),
        ("seed", -1, "--seed is -1"),
        ("seed", 2**32, "--seed is 4294967296"),
        ("nesterov", True, "--nesterov needs"),
        ("audit", 1.5, "--audit is 1.5"),
        ("audit", 0.01, "--audit 0.01 compares to the last bit: add --bitwise"),
    ],
)
def test_values_that_cannot_be_used_are_refused(field, value, option):
    """A bad value is refused at construction, with the option's name and the value."""
    with pytest.raises(ConfigError) as error:
        TrainConfig(**{field: value})
    assert str(error.value).startswith(option)


def test_momentum_is_not_for_adam():
    """Momentum that the optimizer would ignore is refused."""
    with pytest.raises(ConfigError, match="adam has its own"):
        TrainConfig(optimizer="adam", momentum=0.9)


def test_settings_are_frozen():
    """What was checked stays as it was."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().lr = 1.0  # type: ignore[misc]
