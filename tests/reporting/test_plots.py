import pytest

from ddp_gd.reporting.plots import draw_losses


@pytest.mark.parametrize(
    "history",
    [
        {"loss": [1.0]},
        {"loss": [0.0, 0.0]},
        {"loss": [-1.0, -2.0], "val_loss": [0.5, 0.4]},
        {"loss": [1e30] * 30, "val_loss": [1e-30] * 30},
    ],
)
def test_any_history_can_be_drawn(history, tmp_path):
    """One epoch, zeros, negative and huge losses make a picture without a warning."""
    draw_losses(history, tmp_path / "loss.png", "loss")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
