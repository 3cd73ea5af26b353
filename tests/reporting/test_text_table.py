"""Tables that the commands print."""

from __future__ import annotations

import pytest

from ddp_gd.reporting.text_table import print_table


@pytest.mark.parametrize("terminal", ["dumb", "xterm-256color"])
def test_every_cell_is_printed_as_it_is(
    terminal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No line is broken or cut, nothing is markup, and there are no colours, on any terminal."""
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    note = "a word " * 30 + "end"
    print_table(["", "loss", "note"], [["[b]one[/b]", "0.5", ":x:"], ["two", "12.25", note]])
    wide = len(note)
    assert capsys.readouterr().out.splitlines() == [
        f"             loss  {'note':>{wide}}",
        f"[b]one[/b]    0.5  {':x:':>{wide}}",
        f"two         12.25  {note}",
    ]
