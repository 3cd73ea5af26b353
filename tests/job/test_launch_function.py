"""`ddp_gd.launch`: a function run by the workers of a job of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import ddp_gd
from ddp_gd.errors import ConfigError, LaunchError
from ddp_gd.job import launch as launching

WORKER = """
import os
import sys

import numpy as np


def ranks(scale, options):
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
    print(f"rank {rank} prints", flush=True)
    sys.stderr.write(f"rank {rank} warns\\n")
    return {
        "rank": rank,
        "size": int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")),
        "scaled": scale * options["weights"],
        "pair": (1, [None, True, 0.1, float("inf")]),
        "count": np.int64(3),
    }


def fails(_):
    raise ValueError("this is why")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """A module of the user's."""
    (tmp_path / "users_module.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    import users_module  # type: ignore[import-not-found]

    yield users_module
    sys.modules.pop("users_module")


@pytest.mark.jobs
@pytest.mark.parametrize("workers", [1, 2])
def test_the_result_is_rank_0s(
    module: object, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Arguments and result arrive as they are; what the workers print is printed here."""
    weights = np.array([[1.5, 2.5]], "float32")
    result = ddp_gd.launch(module.ranks, workers, (2.0, {"weights": weights}))  # type: ignore[attr-defined]
    assert (result["rank"], result["size"], result["count"]) == (0, workers, 3)
    np.testing.assert_array_equal(result["scaled"], 2 * weights)
    assert result["scaled"].dtype == np.float32
    assert result["pair"] == (1, [None, True, 0.1, float("inf")])
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == [f"rank {rank} prints" for rank in range(workers)]
    assert sorted(err.splitlines()) == [f"rank {rank} warns" for rank in range(workers)]


@pytest.mark.jobs
def test_a_worker_that_fails(module: object) -> None:
    """Its error is in the message, and the job is over."""
    with pytest.raises(LaunchError, match=r"(?s)exit status 1.*ValueError: this is why"):
        ddp_gd.launch(module.fails, 2, (1,))  # type: ignore[attr-defined]


def in_a_notebook(source: str) -> object:
    """A function as a notebook defines it: in `__main__`, its source in a cell."""
    import linecache

    linecache.cache["<cell>"] = (len(source), None, source.splitlines(True), "<cell>")
    names = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec"), names)
    return names["f"]


@pytest.mark.jobs
def test_a_function_of_a_notebook() -> None:
    """It is handed over as text; imports inside of it, and functions in functions, are its own."""
    function = in_a_notebook(
        "def f(n):\n"
        "    import os\n"
        "    def twice(x):\n"
        "        return 2 * x\n"
        "    return [twice(i) for i in range(n)], os.environ['OMPI_COMM_WORLD_SIZE']\n"
    )
    assert ddp_gd.launch(function, np=2, args=[3]) == ([0, 2, 4], "2")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f():\n    return np.ones(x)\n", "f uses np, x from outside of it"),
        ("def f():\n    return [len(y) for _ in range(2)]\n", "f uses y from outside of it"),
        ("f = lambda: 1\n", "must be a plain function"),
        ("import functools\n@functools.cache\ndef f():\n    pass\n", "is no function written in"),
    ],
)
def test_a_function_that_workers_can_not_have(source: str, said: str) -> None:
    """It is said what is missing, before anything is started."""
    with pytest.raises(ConfigError, match=said):
        ddp_gd.launch(in_a_notebook(source), 2)


@pytest.mark.parametrize("value", [object(), {1: 2}, np.array([object()]), {"a": {3}}, b"x"])
def test_what_is_not_handed_over(module: object, value: object) -> None:
    """No pickle: what JSON and plain arrays can't hold is refused."""
    with pytest.raises(ConfigError, match=r"launch: an? .* can't be handed over"):
        ddp_gd.launch(module.fails, 2, (value,))  # type: ignore[attr-defined]


@pytest.mark.parametrize("np", [0, -1, 2.0, "2"])
def test_a_number_of_workers_that_is_none(module: object, np: object) -> None:
    """It is quoted."""
    with pytest.raises(ConfigError, match="launch: np="):
        ddp_gd.launch(module.fails, np)  # type: ignore[attr-defined, arg-type]


def test_no_launch_within_a_job(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker would start workers."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    with pytest.raises(ConfigError, match="one of 2 workers already"):
        ddp_gd.launch(module.fails, 2)  # type: ignore[attr-defined]


def test_history_becomes_its_dict() -> None:
    """As `fit` returns it."""

    class History:
        def __init__(self) -> None:
            self.history = {"loss": [np.float32(0.5), 0.25]}

    arrays: list[np.ndarray] = []
    encoded = launching._encoded((History(),), arrays)
    assert launching._decoded(encoded, {}) == ({"loss": [0.5, 0.25]},)
