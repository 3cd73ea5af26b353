import pytest

from ddp_gd.reporting.plots import draw_losses, draw_shares


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


@pytest.mark.parametrize("workers", [1, 2, 3, 20, 100])
def test_the_axis_of_workers_shows_workers(workers):
    """Each tick is a whole number that is a worker, and there are not too many to read."""
    figure = draw_shares([(i, i + 1) for i in range(workers)], workers)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels[0] == "0"
    assert len({*labels}) == len(labels) == min(workers, len(labels)) <= 20
    assert all(label.isdigit() and int(label) < workers for label in labels)
