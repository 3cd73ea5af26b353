"""Hosts for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Cluster, missing


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """With CI=true, a test that can't run has failed."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"skipped, with CI=true: {report.longrepr[-1]}"
    return report


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
