"""Executes launch/Dockerfile without Docker, in bare Debian roots, and tries the result.

    python -m tests.cluster.dockerfile [folder]     # as root; some minutes, 6 GB in the folder

A stand-in for `docker build` on machines without Docker: it knows the instructions that our file
uses, refuses any other, and runs each RUN in a root made by debootstrap. It lends the roots this
machine's resolver and certificates. Then it starts, as the manifest would (user 1000, no
capabilities, no new privileges), a training of two workers, and sshd with a training through ssh.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "launch" / "Dockerfile"

# Runs a command in a root, with namespaces of its own: mounts and processes end with it.
ENTER = """
set -e
root=$1; shift
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
touch "$root/run/certificates"
mount --bind /etc/ssl/certs/ca-certificates.crt "$root/run/certificates"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
echo "127.0.0.1 localhost $(hostname) worker" >"$root/etc/hosts"
exec /usr/sbin/chroot "$root" "$@"
"""
AS_THE_MANIFEST = (
    *("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all", "--bounding-set=-all", "--"),
)
TRAINING = "python -m ddp_gd.train --bitwise --seed 3 --epochs 3 --verbose 0 --out"
# What the MPI operator mounts: a key that belongs to root and everybody may read.
SSH = f"""
set -e
mkdir -p /home/mpiuser/.ssh /saved && chown 1000:1000 /saved
ssh-keygen -q -t rsa -N '' -f /home/mpiuser/.ssh/id_rsa
cp /home/mpiuser/.ssh/id_rsa.pub /home/mpiuser/.ssh/authorized_keys
chmod 644 /home/mpiuser/.ssh/*
{shlex.join(AS_THE_MANIFEST)} /usr/sbin/sshd -D -e -f /etc/ssh/sshd_ddp_gd.conf &
sleep 2
{shlex.join(AS_THE_MANIFEST)} ssh worker mpirun -np 2 {TRAINING} /saved/over-ssh
"""


def instructions(text: str) -> list[tuple[str, str]]:
    """The file's instructions, their continued lines joined: `("RUN", "apt-get ...")`."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.split("\n"))]


class Stage:
    """One FROM: a root of its own, and what ARG, ENV, USER and WORKDIR said."""

    def __init__(self, root: Path):
        self.root = root
        self.environ: dict[str, str] = {}
        self.arguments: dict[str, str] = {}
        self.folder = "/"

    def run(self, *command: str) -> str:
        """Run a command in the root; print and return what it prints; errors end us."""
        lent = {name: os.environ[name] for name in os.environ if name.startswith("PIP_")}
        lent |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), "/run/certificates")
        environ = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "DEBIAN_FRONTEND": "noninteractive",
            **lent,
            **self.arguments,
            **self.environ,
        }
        enter = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
        into = ["/usr/bin/env", f"--chdir={self.folder}"]
        with subprocess.Popen(
            [*enter, "bash", "-c", ENTER, "bash", str(self.root), *into, *command],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if not line.startswith(("Get:", "Selecting ", "Preparing ", "Unpacking ")):
                    print(f"    {line}", end="", flush=True)
        if process.returncode:
            sys.exit(f"exit status {process.returncode}: {shlex.join(command)}")
        return "".join(lines)


def copy_context(target: Path) -> None:
    """What `COPY . target` copies: the files that git knows, which .dockerignore leaves in."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def build(folder: Path) -> Stage:
    """Execute the file; return its last stage."""
    stages: dict[str, Stage] = {}
    stage = Stage(folder)
    for word, rest in instructions(DOCKERFILE.read_text()):
        print(f"{word} {rest}", flush=True)
        start = time.monotonic()
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            if image != "debian:bookworm-slim":
                sys.exit(f"FROM {image}: only debian:bookworm-slim is known here.")
            stage = stages[name] = Stage(folder / f"stage{len(stages)}")
            make_root(folder / "debian", stage.root)
        elif word == "RUN":
            stage.run("/bin/sh", "-c", rest)
        elif word in ("ARG", "ENV"):
            name, _, value = rest.partition("=")
            (stage.arguments if word == "ARG" else stage.environ)[name] = value
        elif word == "COPY" and rest.startswith("--from="):
            name, source, target = rest.removeprefix("--from=").split()
            subprocess.run(
                ["cp", "-a", f"{stages[name].root}{source}", f"{stage.root}{target}"], check=True
            )
        elif word == "COPY" and rest.startswith(". "):
            copy_context(Path(f"{stage.root}{rest.removeprefix('. ')}"))
        elif word == "WORKDIR":
            stage.folder = rest
        elif word != "USER":
            sys.exit(f"{word}: an instruction that is not known here.")
        print(f"    {time.monotonic() - start:.0f} s", flush=True)
    return stage


def make_root(debian: Path, root: Path) -> None:
    """A copy of a bare Debian, which is made once."""
    if not debian.exists():
        partial = debian.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", "bookworm", str(partial)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        partial.rename(debian)
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "-a", str(debian), str(root)], check=True)


def try_out(stage: Stage) -> None:
    """Train with two workers as the manifest's user, and once more through sshd."""
    stage.environ["HOME"] = "/home/mpiuser"
    print("as user 1000, without capabilities: launch/cpu_mpi.sh")
    training = shlex.split(TRAINING)[3:]
    script = ["bash", "launch/cpu_mpi.sh", "-np", "2", *training, "/tmp/results"]
    local = stage.run(*AS_THE_MANIFEST, *script)
    print("the same through sshd")
    remote = stage.run("bash", "-c", SSH)
    found = [re.findall("^fingerprint: (.*)$", text, re.MULTILINE) for text in (local, remote)]
    if found[0] != found[1] or len(found[0]) != 1:
        sys.exit(f"these fingerprints should be one and the same: {found}")
    print("the image works: both trainings end in the same bits")


def main() -> None:
    """Build the image in a folder, and try it."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        sys.exit("This needs root and debootstrap (Debian: apt-get install debootstrap).")
    with tempfile.TemporaryDirectory(prefix="ddp_gd-image-") as made:
        try_out(build(Path(sys.argv[1] if len(sys.argv) > 1 else made)))


if __name__ == "__main__":
    main()
