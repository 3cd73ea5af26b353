"""An exception that nobody catches, in a process that is alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from ddp_gd.job.failures import show_briefly

show_briefly()


def mine():
    from ddp_gd import settings
    return settings.stall_seconds()


{}
"""


@pytest.mark.parametrize(
    ("last", "environ", "lines"),
    [
        ("mine()", {}, 2),
        ("mine()", {"DDP_GD_TRACEBACK": "1"}, 5),
        ("1 / 0", {}, 4),
    ],
)
def test_an_error_of_this_package_ends_a_script_with_its_message(
    last: str, environ: dict[str, str], lines: int, tmp_path: Path
) -> None:
    """And with the line of the script; other errors, and DDP_GD_TRACEBACK=1, show everything."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(last))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "DDP_GD_STALL_SECONDS": "soon", **environ},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()
    if lines == 2:
        assert said[0].startswith("ddp_gd: error: DDP_GD_STALL_SECONDS='soon' must be a number of")
        assert said[1:] == [f"    {script}, line 9: return settings.stall_seconds()"]
    else:
        assert said[0].startswith("Traceback")
        assert len(said) >= lines
