"""Hosts for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Cluster, missing


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three hosts that reach each other by ssh; the first is where jobs are started."""
    if reason := missing():
        pytest.skip(reason)
    cluster = Cluster(3, Path(tmp_path_factory.mktemp("cluster")))
    try:
        yield cluster
    finally:
        cluster.close()
