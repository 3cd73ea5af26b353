"""What a host says of itself before a training: cpu_mpi.sh runs this on each one, over ssh.

Prints one line, JSON after `_MARK`: what a login prints by itself is told from it that way. It is
sent as text, so that a host whose checkout is older answers the same questions.

    python report.py [MPIRUN [GPUS]]

MPIRUN is the file that --mpirun named, and GPUS how many there are, where that was asked for.
"""

import hashlib
import importlib.util
import ipaddress
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

_MARK = "ddp_gd-report: "
_PACKAGES = ("ddp_gd", "tensorflow", "tensorflow-cpu", "keras", "numpy", "mpi4py", "horovod")


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _source():
    """Digest of the package that a worker would import; it isn't imported for this."""
    spec = importlib.util.find_spec("ddp_gd")
    if spec is None or not spec.submodule_search_locations:
        return "none"
    folder = Path(next(iter(spec.submodule_search_locations)))
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode())
        digest.update(file.read_bytes())
    return f"sha256 {digest.hexdigest()[:12]}"


def _mpi():
    mpirun = shutil.which((sys.argv[1:] or ["mpirun"])[0])
    if mpirun is None:
        return "none"
    lines = subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout.split("\n")
    found = [line.strip() for line in lines if "Open MPI" in line or "Version:" in line]
    return " ".join(found[0].split()) if found else "another one"


def _networks():
    """IPv4 address -> its interface and network; without the loopback."""
    import psutil  # Horovod needs it, so the set-up installs it

    found = {}
    for interface, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family == socket.AF_INET and not entry.address.startswith("127."):
                network = ipaddress.ip_interface(f"{entry.address}/{entry.netmask}").network
                found[entry.address] = [interface, str(network)]
    return found


def main():
    """Print the report."""
    report = {
        "name": socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": int(sys.argv[2]) if sys.argv[2:] else None,
        # Addresses of both ends of the connection that brought this program here.
        "connection": os.environ.get("SSH_CONNECTION", "").split(),
        "networks": _networks(),
        "facts": {
            "Python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "ddp_gd's source": _source(),
            "mpirun": _mpi(),
        },
    }
    sys.stdout.write(f"\n{_MARK}{json.dumps(report)}\n")


main()
