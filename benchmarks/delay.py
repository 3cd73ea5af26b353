"""A link with a delay: two network interfaces in two namespaces, joined by this process.

    python -m benchmarks.delay NAMESPACE NAMESPACE INTERFACE SECONDS

What leaves one comes out of the other so much later. Prints a line when both are there, and ends
with its standard input. For kernels without `tc`'s netem; needs root.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import os
import select
import struct
import sys
import time

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_LARGEST_PACKET = 2**16


def main() -> None:
    """Make the interfaces, and carry packets between them."""
    *namespaces, interface, seconds = sys.argv[1:]
    ends = [_open(namespace, interface) for namespace in namespaces]
    delay = float(seconds)
    print("ready", flush=True)
    other = dict(zip(ends, reversed(ends), strict=True))
    under_way: collections.deque[tuple[float, int, bytes]] = collections.deque()
    while True:
        wait = max(0.0, under_way[0][0] - time.perf_counter()) if under_way else None
        readable = select.select([*ends, 0], [], [], wait)[0]
        if 0 in readable:
            return
        now = time.perf_counter()
        under_way += [(now + delay, other[end], os.read(end, _LARGEST_PACKET)) for end in readable]
        while under_way and under_way[0][0] <= time.perf_counter():
            _, end, packet = under_way.popleft()
            with contextlib.suppress(OSError):  # an interface that isn't up yet takes nothing
                os.write(end, packet)


def _open(namespace: str, interface: str) -> int:
    """Make the interface in the namespace; what is written to the result comes out of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"can't enter the network namespace {namespace}")
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", interface.encode(), _IFF_TUN | _IFF_NO_PI))
    return end


if __name__ == "__main__":
    main()
