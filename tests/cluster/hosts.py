"""Several hosts on one machine: namespaces, each with its own network, processes, name and sshd.

Nothing of it has a name that others could see. Namespaces, the switch between the hosts and their
addresses live as long as the processes in them, and those die with the process that made them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NETWORK = "10.213.77"
_TOOLS = ("ip", "unshare", "nsenter", "setpriv", "ssh-keygen", "ssh", "mount")
_SSHD = "/usr/sbin/sshd"

# The first process of a host. What it mounts is seen by this host alone.
_BOOT = """
set -e
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/sshd
mount --bind "$2/ssh" /etc/ssh
mount --bind "$2/hosts" /etc/hosts
if [ -d /root/.ssh ]; then mount -t tmpfs tmpfs /root/.ssh; fi
ip link set lo up
# Every host that runs containers has such a bridge, with the same address: a trap.
ip link add docker0 type bridge
ip addr add 172.17.0.1/16 dev docker0
ip link set docker0 up
/usr/sbin/sshd -D -e -f /etc/ssh/sshd_config 2>"$2/$1.log" &
echo ready
wait
"""


def missing() -> str:
    """Why there can be no hosts here, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    tools = [tool for tool in _TOOLS if not shutil.which(tool)]
    if not Path(_SSHD).exists():
        tools.append("sshd")
    if tools:
        return f"there is no {', '.join(tools)} (launch/test_cluster.sh installs them)"
    done = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"],
        capture_output=True,
        text=True,
    )
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


@dataclass
class Host:
    """One of them.

    Attributes:
        name: its host name.
        address: in the network of all hosts.
        first: the process number, as seen from here, of its first process.
    """

    name: str
    address: str
    first: int
    _unshare: subprocess.Popen = field(repr=False)

    def command(self, argv: Sequence[str], cwd: Path | str = "/") -> list[str]:
        """What runs `argv` on this host."""
        inside = ["nsenter", "--target", str(self.first), "--all", f"--wd={cwd}"]
        return [*inside, "--", *argv]

    def run(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | str = "/",
        timeout: float = 150,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on this host and return what it printed."""
        return subprocess.run(
            self.command(argv, cwd),
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def processes(self) -> list[str]:
        """The command lines of what runs on this host, but for sshd and what started it."""
        found = self.run("ps", "-eo", "pid=,args=").stdout.splitlines()
        ours = [line.split(maxsplit=1) for line in found]
        return [args for pid, args in ours if pid != "1" and not args.startswith(("sshd:", "ps "))]

    @contextlib.contextmanager
    def covered(self, path: Path, with_what: Path) -> Iterator[None]:
        """Let another file or folder be seen at `path`, on this host alone."""
        assert self.run("mount", "--bind", str(with_what), str(path)).returncode == 0
        try:
            yield
        finally:
            assert self.run("umount", str(path)).returncode == 0


class Cluster:
    """Hosts at one switch.

    Args:
        count: how many.
        folder: for keys and settings.

    Attributes:
        hosts: in the order of their addresses.
    """

    def __init__(self, count: int, folder: Path) -> None:
        # Launchers keep files named after the host in /tmp, which the hosts share.
        names = [f"host{n}-{os.getpid()}" for n in range(1, count + 1)]
        self._switch, self._switch_process = _start(
            ["--net"], ["sh", "-c", "echo ready; exec sleep infinity"]
        )
        self.hosts: list[Host] = []
        try:
            self._in_switch("link", "add", "switch", "type", "bridge")
            self._in_switch("link", "set", "switch", "up")
            addresses = {name: f"{NETWORK}.{n}" for n, name in enumerate(names, 1)}
            _settings(folder, addresses)
            kinds = ["--net", "--uts", "--ipc", "--mount", "--pid", "--mount-proc"]
            for name, address in addresses.items():
                first, process = _start(kinds, ["sh", "-c", _BOOT, "sh", name, str(folder)])
                self.hosts.append(Host(name, address, first, process))
                self._connect(self.hosts[-1], f"port{len(self.hosts)}")
            for host in self.hosts:
                _wait_for_ssh(self.hosts[0], host.name)
        except BaseException:
            self.close()
            raise

    def _connect(self, host: Host, port: str) -> None:
        peer = ["peer", "name", "eth0", "netns", str(host.first)]
        self._in_switch("link", "add", port, "type", "veth", *peer)
        self._in_switch("link", "set", port, "master", "switch", "up")
        for words in (["addr", "add", f"{host.address}/24"], ["link", "set", "up"]):
            _ip(host.first, *words, "dev", "eth0")

    @contextlib.contextmanager
    def unplugged(self, host: Host) -> Iterator[None]:
        """Cut a host off from the others, for a while."""
        port = f"port{self.hosts.index(host) + 1}"
        self._in_switch("link", "set", port, "down")
        try:
            yield
        finally:
            self._in_switch("link", "set", port, "up")

    def close(self) -> None:
        """End every process of every host; nothing is left."""
        for process in [*(host._unshare for host in self.hosts), self._switch_process]:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for host in self.hosts:  # what a launcher that was killed leaves
            for left in Path(tempfile.gettempdir()).glob(f"*.{host.name}.*"):
                shutil.rmtree(left, ignore_errors=True)

    def _in_switch(self, *words: str) -> None:
        _ip(self._switch, *words)


def _ip(process: int, *words: str) -> None:
    """Run `ip` in the network of a process: never in this machine's own."""
    command = ["nsenter", "--target", str(process), "--net", "ip", *words]
    subprocess.run(command, check=True, capture_output=True)


def _start(kinds: Sequence[str], command: Sequence[str]) -> tuple[int, subprocess.Popen]:
    """Start a process in namespaces of its own; return its number, and the process to end it by."""
    # Whatever ends this test run, a SIGKILL too, ends it and all processes in its namespaces.
    die = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child"]
    process = subprocess.Popen(
        [*die, *kinds, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        process.kill()
        raise RuntimeError("a host did not start")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return int(children.split()[0]), process


def _settings(folder: Path, addresses: Mapping[str, str]) -> None:
    """Write the hosts' /etc/hosts and /etc/ssh: keys of their own, and login by key alone."""
    lines = ["127.0.0.1 localhost", *(f"{a} {name}" for name, a in addresses.items())]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    ssh = folder / "ssh"
    ssh.mkdir(mode=0o700)
    for key in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / key)]
        subprocess.run(command, check=True)
    shutil.copy(ssh / "user_key.pub", ssh / "authorized_keys")
    host_key = (ssh / "host_key.pub").read_text()
    names = ",".join([*addresses, *addresses.values()])
    (ssh / "ssh_known_hosts").write_text(f"{names} {host_key}")
    (ssh / "ssh_config").write_text("IdentityFile /etc/ssh/user_key\n")
    (ssh / "sshd_config").write_text(
        "HostKey /etc/ssh/host_key\nAuthorizedKeysFile /etc/ssh/authorized_keys\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nStrictModes no\nPidFile none\n"
    )


def _wait_for_ssh(origin: Host, name: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        done = origin.run("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=2", name, "true")
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"sshd on {name} does not answer: {done.stderr}")
        time.sleep(0.2)
