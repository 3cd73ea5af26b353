"""The environment variables of this package."""

from __future__ import annotations

import pytest

from ddp_gd import settings
from ddp_gd.errors import ConfigError


@pytest.mark.parametrize("value", ["soon", "-1", "inf", "nan"])
def test_a_limit_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP_GD_STALL_SECONDS is quoted."""
    monkeypatch.setenv("DDP_GD_STALL_SECONDS", value)
    with pytest.raises(ConfigError, match=f"DDP_GD_STALL_SECONDS='{value}'"):
        settings.stall_seconds()
