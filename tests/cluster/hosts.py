"""Several hosts on one machine: namespaces with a network, a name, processes and an sshd of their own.

Nothing of it has a name that others could see. Namespaces, the switch between the hosts and their
addresses live as long as the processes in them, and those die with the process that made them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
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

    def command(self, argv: Sequence[str]) -> list[str]:
        """What runs `argv` on this host, in the directory of the caller."""
        inside = ["nsenter", "--target", str(self.first), "--all", f"--wd={os.getcwd()}"]
        return [*inside, "--", *argv]

    def run(
        self, *argv: str, env: Mapping[str, str] | None = None, timeout: float = 150
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on this host and return what it printed."""
        return subprocess.run(
            self.command(argv), env=env, capture_output=True, text=True, timeout=timeout
        )

    def processes(self, word: str) -> list[str]:
        """The command lines on this host that contain `word`."""
        found = self.run("ps", "-eo", "args").stdout.splitlines()
        return [line for line in found if word in line]


class Cluster:
    """Hosts at one switch.

    Args:
        names: of the hosts.
        folder: for keys and settings.
    """

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        self._switch, self._switch_process = _start(
            ["--net"], ["sh", "-c", "echo ready; exec sleep infinity"]
        )
        self.hosts: dict[str, Host] = {}
        try:
            self._in_switch("link", "add", "switch", "type", "bridge")
            self._in_switch("link", "set", "switch", "up")
            addresses = {name: f"{NETWORK}.{n}" for n, name in enumerate(names, 1)}
            _settings(folder, addresses)
            kinds = ["--net", "--uts", "--ipc", "--mount", "--pid", "--mount-proc"]
            for name, address in addresses.items():
                first, process = _start(kinds, ["sh", "-c", _BOOT, "sh", name, str(folder)])
                self.hosts[name] = Host(name, address, first, process)
                self._connect(self.hosts[name])
            for host in self.hosts.values():
                _wait_for_ssh(next(iter(self.hosts.values())), host.name)
        except BaseException:
            self.close()
            raise

    def _connect(self, host: Host) -> None:
        peer = ["peer", "name", "eth0", "netns", str(host.first)]
        self._in_switch("link", "add", host.name, "type", "veth", *peer)
        self._in_switch("link", "set", host.name, "master", "switch", "up")
        for words in (["addr", "add", f"{host.address}/24"], ["link", "set", "up"]):
            _ip(host.first, *words, "dev", "eth0")

    def unplug(self, name: str) -> None:
        """Cut a host off from the others."""
        self._in_switch("link", "set", name, "down")

    def plug_in(self, name: str) -> None:
        """Connect it again."""
        self._in_switch("link", "set", name, "up")

    def close(self) -> None:
        """End every process of every host; nothing is left."""
        for process in [*(host._unshare for host in self.hosts.values()), self._switch_process]:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

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
