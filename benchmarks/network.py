"""Two hosts on one machine: network namespaces joined by a veth pair. Needs root and iproute2."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_SUBNET = "10.213.7"
_NAMES = ("ddp_gd_bench_1", "ddp_gd_bench_2")
# What mpirun calls instead of ssh: start a command on the host with this address.
_AGENT = Path(__file__).with_name("namespace_agent.sh")


class Hosts:
    """Two hosts, each with one worker.

    Args:
        gigabits: rate of the link, both ways, in Gbit/s; None leaves it as fast as the kernel is.
    """

    def __init__(self, gigabits: float | None):
        self._gigabits = gigabits

    def __enter__(self) -> Hosts:
        self.__exit__()
        for number, name in enumerate(_NAMES, start=1):
            _call("ip", "netns", "add", name)
            if number == 1:
                continue
            _call(
                *("ip", "link", "add", "link0", "netns", _NAMES[0], "type", "veth"),
                *("peer", "name", "link0", "netns", _NAMES[1]),
            )
        for number, name in enumerate(_NAMES, start=1):
            _call("ip", "-n", name, "addr", "add", f"{_SUBNET}.{number}/24", "dev", "link0")
            for device in ("lo", "link0"):
                _call("ip", "-n", name, "link", "set", device, "up")
            if self._gigabits is not None:
                # A token bucket: tc's netem, which could delay too, is missing in many kernels.
                rate = ("rate", f"{self._gigabits * 1000:.0f}mbit", "burst", "256kb")
                _call(
                    "tc",
                    "-n",
                    name,
                    *("qdisc", "add", "dev", "link0", "root", "tbf"),
                    *rate,
                    *("latency", "100ms"),
                )
        return self

    def __exit__(self, *_: object) -> None:
        for name in _NAMES:
            with contextlib.suppress(subprocess.CalledProcessError):
                _call("ip", "netns", "delete", name)

    def run(self, argv: Sequence[str], environ: Mapping[str, str]) -> str:
        """Run `python *argv` on both hosts as one job, and return what it printed."""
        subnet = f"{_SUBNET}.0/24"
        mpirun = [
            *(str(Path(sys.executable).parent / "mpirun"), "-np", "2"),
            *("--host", f"{_SUBNET}.1:1,{_SUBNET}.2:1", "--mca", "plm_rsh_agent", str(_AGENT)),
            *("--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", subnet),
            *("--mca", "oob_tcp_if_include", subnet, "--mca", "hwloc_base_binding_policy", "none"),
            *("-x", "PATH", "-x", "PYTHONPATH"),
            *(argument for name in environ for argument in ("-x", name)),
        ]
        return subprocess.run(
            [str(_AGENT), f"{_SUBNET}.1", *mpirun, sys.executable, *argv],
            env={**os.environ, **environ},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout


def _call(*command: str) -> None:
    subprocess.run(command, check=True, stderr=subprocess.PIPE)
