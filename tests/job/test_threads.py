"""How many cores a worker may keep busy."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from ddp_gd.job import procfs, threads


def test_cores_of_a_host_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that may run on the same cores take an equal part of them, at least one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(procfs, "children", lambda parent: [])
    assert [threads.for_worker(workers) for workers in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]
    # Two cores each, of eight: already divided by the launcher.
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3})
    assert threads.for_worker(4) == 2


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ({0}, {1}, 1),  # bound to one core each
        ({0, 1}, {2, 3}, 2),
        (set(range(8)), set(range(8)), 4),  # bound to none
        ({0, 1, 2, 3}, {0, 1, 2, 3}, 2),  # both to the same
    ],
)
@pytest.mark.parametrize("connections", [0, 1, 2])
def test_cores_of_siblings(
    monkeypatch: pytest.MonkeyPatch, own: set, other: set, expected: int, connections: int
) -> None:
    """Workers that a launcher bound to cores of their own keep them, whatever else it started."""
    sets = {0: own, 1: own, 2: other, **{3 + n: set(range(8)) for n in range(connections)}}
    monkeypatch.setattr(procfs, "cores_limit", lambda: math.inf)
    monkeypatch.setattr(os, "sched_getaffinity", sets.__getitem__)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(procfs, "children", lambda parent: list(sets)[1:])
    assert threads.for_worker(2) == expected


def control_groups(root: Path, files: dict[str, str]) -> Path:
    """Write files of control groups; return the one that says which ones a process is in."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    own = root / "own"
    own.write_text("7:memory:/x\n4:cpu,cpuacct:/c\n0::/a/b\n")
    return own


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"a/b/cpu.max": "max 100000"}, math.inf),
        ({"a/b/cpu.max": "150000 100000"}, 1.5),
        # A limit further up holds below, too.
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
        ({"a/b/cpu.max": "400000 100000", "cpu.max": "300000 100000"}, 3),
        (
            {"cpu,cpuacct/c/cpu.cfs_quota_us": "-1", "cpu,cpuacct/c/cpu.cfs_period_us": "9"},
            math.inf,
        ),
        ({"cpu,cpuacct/c/cpu.cfs_quota_us": "50", "cpu,cpuacct/c/cpu.cfs_period_us": "100"}, 0.5),
    ],
)
def test_the_quota_of_a_container_is_read(
    tmp_path: Path, files: dict[str, str], expected: float
) -> None:
    """The least limit of the process's control group and those around it, of either version."""
    own = control_groups(tmp_path, files)
    assert procfs.cores_limit(tmp_path, own) == expected
    assert procfs.cores_limit(tmp_path, tmp_path / "missing") == math.inf


def test_a_quota_is_shared_by_the_workers_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is given more threads than its part of the container's limit, nor fewer than 1."""
    monkeypatch.setattr(procfs, "children", lambda parent: [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(procfs, "cores_limit", lambda: 5.5)
    assert [threads.for_worker(workers) for workers in (1, 2, 3, 8)] == [5, 2, 1, 1]


@pytest.mark.parametrize(
    ("files", "limit", "kills"),
    [
        ({}, math.inf, 0),
        ({"a/b/memory.max": "max", "a/memory.max": "300"}, 300, 0),
        ({"a/b/memory.max": "200", "a/b/memory.events": "oom 5\noom_kill 2\n"}, 200, 2),
        # Without a limit it is a number near 2**63.
        (
            {
                "memory/x/memory.limit_in_bytes": "9223372036854771712",
                "memory/x/memory.oom_control": "under_oom 0\noom_kill 1\n",
            },
            math.inf,
            1,
        ),
    ],
)
def test_what_a_container_may_hold(
    tmp_path: Path, files: dict[str, str], limit: float, kills: int
) -> None:
    """The least limit of its memory, and how many processes the kernel has killed for it."""
    own = control_groups(tmp_path, files)
    assert procfs.memory_limit(tmp_path, own) == limit
    assert procfs.memory_kills(tmp_path, own) == kills
