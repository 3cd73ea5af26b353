"""Two hosts on one machine: network namespaces joined by a link. Needs root and iproute2."""

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
        delay: seconds that a packet is under way, over a relay without a rate; None for no relay.
    """

    def __init__(self, gigabits: float | None, delay: float | None = None):
        self._gigabits = gigabits
        self._delay = delay
        self._relay: subprocess.Popen[str] | None = None

    def __enter__(self) -> Hosts:
        self.__exit__()
        for name in _NAMES:
            _call("ip", "netns", "add", name)
        if self._delay is not None:
            # Not tc's netem, which is missing in many kernels.
            self._relay = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.delay", *_NAMES, "link0", str(self._delay)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self._relay.stdout is not None
            if self._relay.stdout.readline() != "ready\n":
                raise RuntimeError("the link with a delay could not be made")
            for name in _NAMES:  # large packets: a Python process carries each
                _call("ip", "-n", name, "link", "set", "link0", "mtu", "65000")
        else:
            _call(
                *("ip", "link", "add", "link0", "netns", _NAMES[0], "type", "veth"),
                *("peer", "name", "link0", "netns", _NAMES[1]),
            )
        for number, name in enumerate(_NAMES, start=1):
            _call("ip", "-n", name, "addr", "add", f"{_SUBNET}.{number}/24", "dev", "link0")
            for device in ("lo", "link0"):
                _call("ip", "-n", name, "link", "set", device, "up")
            if self._gigabits is not None:
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
        if self._relay is not None:
            self._relay.communicate()  # the end of its input is its own
            self._relay = None
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
