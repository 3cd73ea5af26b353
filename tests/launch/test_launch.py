import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile import ARGUMENTS, in_place_of_training

pytestmark = pytest.mark.jobs

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"

# Stands in for ddp_gd.train: leaves its arguments in a file per rank, then ends as it is told. To
# save and stop takes it a second.
STAND_IN = """
import json, os, pathlib, signal, sys, time

def save(*_):
    time.sleep(1)
    pathlib.Path(os.environ["SEEN"], rank + ".saved").touch()
    sys.exit(143)

signal.signal(signal.SIGUSR1, save)
rank = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
os.write(1, f"this is rank {rank}\\n".encode())  # in one piece
os.write(2, f"an error of rank {rank}\\n".encode())
partial = pathlib.Path(os.environ["SEEN"], rank + ".partial")
partial.write_text(json.dumps([os.getpid(), os.getcwd(), sys.argv[1:]]))
partial.rename(partial.with_suffix(".json"))
time.sleep(float(os.environ.get("LINGER", "0")))
sys.exit(int(os.environ.get("STATUS", "0")))
"""

# Stands in for a host: what cpu_mpi.sh would have run there over ssh runs here.
SSH = """#!/bin/sh
exec sh
"""

# Stands in for a training that fails three times, and saves a checkpoint before the second time.
FAILS = """
import os, pathlib, sys
folder = pathlib.Path(os.environ["SEEN"])
start = len(list(folder.glob("start*")))
(folder / f"start{start}").write_text(" ".join(sys.argv[1:]))
if start == 1:
    (folder / "step-000000000005-0.safetensors").touch()
sys.exit(1 if start < 3 else 0)
"""


# Stands in for ssh to hosts that have names of their own.
SSH_WITH_NAMES = """#!/bin/sh
while [ $# -gt 2 ]; do shift; done
sh | sed "s/\\"name\\": \\"[^\\"]*\\"/\\"name\\": \\"$1\\"/"
"""

# Stands in for an mpirun whose first job an audit ends.
MPIRUN_OF_AN_AUDIT = """#!/bin/sh
if [ "$1" = --version ]; then echo 'mpirun (Open MPI) 4.1.8'; exit; fi
n=$(ls "$SEEN" | wc -l)
echo "$@" >"$SEEN/start$n"
[ "$n" -eq 0 ] || exit 0
[ -z "$NAMED" ] || echo "$NAMED" >"$SAVED/audit-named-hosts"
exit 4
"""


def run(
    script: Path, *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a launch script in the environment that runs this test."""
    return subprocess.run(
        ["bash", str(script), *arguments],
        env={**os.environ, "VIRTUAL_ENV": sys.prefix, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def _set_up() -> None:
    """Skip where launch/setup.sh did not make the environment: a test must not install things."""
    if run(LAUNCH / "setup.sh", "--check").returncode != 0:
        pytest.skip("this environment is not set up (bash launch/setup.sh)")


@pytest.fixture
def stand_in(_set_up: None, tmp_path: Path) -> dict[str, str]:
    """The environment in which `python -m ddp_gd.train` is the stand-in."""
    path = in_place_of_training(tmp_path, STAND_IN)
    seen = tmp_path / "seen"
    seen.mkdir()
    return {"PYTHONPATH": path, "SEEN": str(seen)}


def seen(env: dict[str, str]) -> dict[str, list]:
    """What each rank's stand-in left: process number, directory, arguments."""
    return {path.stem: json.loads(path.read_text()) for path in Path(env["SEEN"]).glob("*.json")}


@pytest.mark.parametrize(
    "script",
    [
        *("setup.sh", "train.sh", "cpu_mpi.sh", "multi_gpu.sh", "slurm.sbatch"),
        *("bench.sh", "test.sh", "test_cluster.sh"),
    ],
)
def test_help(script: str, tmp_path: Path) -> None:
    """`--help` explains itself in a checkout that was never set up, and sets nothing up."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    result = run(tmp_path / "launch" / script, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage: ")
    assert f"bash launch/{script}" in result.stdout
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("script", "arguments", "quoted"),
    [
        ("train.sh", ["-np"], "''"),
        ("train.sh", ["-np", "0"], "'0'"),
        ("train.sh", ["-np", "two"], "'two'"),
        ("train.sh", ["-np", "1; true"], "'1; true'"),
        ("train.sh", ["--epochs", "2", "--np", "x"], "'x'"),
        ("train.sh", ["--epochs", "2", "-n"], "''"),
        ("setup.sh", ["--requires-horovod"], "'--requires-horovod'"),
        ("cpu_mpi.sh", ["-np", "-1"], "'-1'"),
        ("cpu_mpi.sh", ["--hosts", "a:4,-x"], "'a:4,-x'"),
        ("cpu_mpi.sh", ["--hosts", "a:4,b", "-np", "6"], "-np 6"),
        ("cpu_mpi.sh", ["-np", "2", "--min-np", "3"], "--min-np 3"),
        ("cpu_mpi.sh", ["--hostfile", "no-such-file"], "'no-such-file'"),
        ("cpu_mpi.sh", ["--interface", "eth0;id"], "'eth0;id'"),
        ("cpu_mpi.sh", ["--interface", "eth0"], "--hosts or --hostfile"),
        ("cpu_mpi.sh", ["--launcher", "srun"], "'srun'"),
        ("cpu_mpi.sh", ["--mpirun", "/no/mpirun"], "'/no/mpirun'"),
        ("cpu_mpi.sh", ["--mpirun", "/bin/true", "--launcher", "horovodrun"], "'/bin/true'"),
        ("cpu_mpi.sh", ["-x", "A B"], "'A B'"),
        ("cpu_mpi.sh", ["-x", "DDP_GD_NO_SUCH"], "-x DDP_GD_NO_SUCH"),
        ("cpu_mpi.sh", ["--logs", ""], "''"),
        ("cpu_mpi.sh", ["--restarts", "3", "--epochs", "2"], "--checkpoint FOLDER"),
    ],
)
def test_wrong_command_line(script: str, arguments: list[str], quoted: str) -> None:
    """A wrong command line ends with status 2, the bad value quoted, before anything is set up."""
    result = run(LAUNCH / script, *arguments)
    assert result.returncode == 2
    assert quoted in result.stderr
    assert "--help" in result.stderr


@pytest.mark.timed
@pytest.mark.usefixtures("_set_up")
def test_second_set_up_is_quick() -> None:
    """A current set-up is recognised in seconds, and says so."""
    if run(LAUNCH / "setup.sh", "--check", "--require-horovod").returncode != 0:
        pytest.skip("without Horovod a second set-up tries again to build it")
    start = time.monotonic()
    result = run(LAUNCH / "setup.sh")
    assert result.returncode == 0, result.stderr
    assert "nothing to do" in result.stderr
    assert time.monotonic() - start < 5


def test_set_up_of_another_checkout_does_not_count(tmp_path: Path) -> None:
    """An environment in which another checkout is installed is not current for this one."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert run(tmp_path / "launch" / "setup.sh", "--check").returncode == 1


@pytest.mark.parametrize(
    ("script", "prefix", "workers"),
    [
        ("train.sh", ["--"], 1),
        ("train.sh", ["-np", "2", "--"], 2),
        ("cpu_mpi.sh", ["-np", "2", "--logs", "logs", "--"], 2),
        ("cpu_mpi.sh", ["-np", "1", "--launcher", "horovodrun", "--logs", "logs", "--"], 1),
    ],
    ids=["one-process", "train.sh", "mpirun", "horovodrun"],
)
def test_arguments_arrive_unchanged(
    stand_in: dict[str, str], tmp_path: Path, script: str, prefix: list[str], workers: int
) -> None:
    """Every worker gets 1,000 hostile arguments byte for byte, in the directory of the caller.

    Of what it prints, cpu_mpi.sh keeps a log, too.
    """
    result = run(LAUNCH / script, *prefix, *ARGUMENTS, env=stand_in, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = seen(stand_in)
    assert sorted(found) == [str(rank) for rank in range(workers)]
    assert all(entry[1:] == [str(tmp_path), ARGUMENTS] for entry in found.values())
    for rank in range(workers):
        assert f"this is rank {rank}\n" in result.stdout
        assert f"an error of rank {rank}\n" in result.stderr
        if script == "cpu_mpi.sh":
            log = (tmp_path / "logs" / f"rank-{rank}.log").read_text()
            assert sorted(log.splitlines()) == [f"an error of rank {rank}", f"this is rank {rank}"]


@pytest.mark.parametrize(
    "prefix", [[], ["-np", "2"], ["--lr=1", "-n", "2"]], ids=["one-process", "two", "anywhere"]
)
def test_exit_status_is_the_programs(
    stand_in: dict[str, str], tmp_path: Path, prefix: list[str]
) -> None:
    """train.sh ends with the exit status of the training program."""
    env = {**stand_in, "STATUS": "7"}
    assert run(LAUNCH / "train.sh", *prefix, env=env, cwd=tmp_path).returncode == 7


@pytest.mark.parametrize(("restarts", "status", "starts"), [("2", 0, 4), ("1", 1, 3)])
def test_a_failed_job_is_started_again(
    stand_in: dict[str, str], tmp_path: Path, restarts: str, status: int, starts: int
) -> None:
    """With --resume; so often, counted from the last time that it came further."""
    (Path(stand_in["PYTHONPATH"]) / "ddp_gd" / "train.py").write_text(FAILS)
    folder = Path(stand_in["SEEN"])
    arguments = ["-np", "1", "--restarts", restarts, "--checkpoint", str(folder), "--lr=1"]
    result = run(LAUNCH / "cpu_mpi.sh", *arguments, env=stand_in, cwd=tmp_path)
    assert result.returncode == status, result.stderr
    assert len(list(folder.glob("start*"))) == starts
    given = f"--checkpoint {folder} --lr=1"
    out, started = (folder / "start0").read_text().split(maxsplit=2)[1:]
    assert started == given
    assert (folder / "start2").read_text() == f"--out {out} {given} --resume"
    assert ("Gave up" in result.stderr) == (status != 0)


@pytest.mark.parametrize(
    ("named", "status", "said"),
    [
        ("two", 0, "two is left out: an audit found that two computed wrong"),
        ("", 4, "the audit can't tell which host computes wrong"),
    ],
)
def test_a_host_that_computes_wrong_is_left_out(
    stand_in: dict[str, str], tmp_path: Path, named: str, status: int, said: str
) -> None:
    """Where an audit named it; the job goes on with the others."""
    folder = tmp_path / "saved"
    folder.mkdir()
    programs = tmp_path / "mpi" / "bin"
    programs.mkdir(parents=True)
    library = tmp_path / "mpi" / "lib" / "libmpi.so.40"
    library.parent.mkdir()
    library.touch()
    (programs / "mpirun.other").write_text(MPIRUN_OF_AN_AUDIT)
    (programs / "ssh").write_text(SSH_WITH_NAMES)
    for program in programs.iterdir():
        program.chmod(0o755)
    result = run(
        *(LAUNCH / "cpu_mpi.sh", "--mpirun", str(programs / "mpirun.other"), "--min-np", "3"),
        *("--hosts", "one:3,two:1", "--interface", "eth7", "--restarts", "1"),
        *("--checkpoint", str(folder)),
        env={
            **stand_in,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "SAVED": str(folder),
            "NAMED": named,
        },
        cwd=tmp_path,
    )
    assert result.returncode == status, result.stderr
    assert said in result.stderr
    starts = [path.read_text() for path in sorted(Path(stand_in["SEEN"]).glob("start*"))]
    assert "-np 4 " in starts[0]
    assert "-H one:3,two:1 " in starts[0]
    assert len(starts) == (2 if named else 1)
    if named:
        assert "-np 3 " in starts[1]
        assert "-H one:3 " in starts[1]


def test_another_trainings_checkpoints_are_left_alone(
    stand_in: dict[str, str], tmp_path: Path
) -> None:
    """Starting again by itself must not mean going on with what was there before."""
    (tmp_path / "step-000000000005-0.safetensors").touch()
    arguments = ["-np", "1", "--restarts", "1", "--checkpoint", str(tmp_path)]
    result = run(LAUNCH / "cpu_mpi.sh", *arguments, env=stand_in, cwd=tmp_path)
    assert result.returncode == 2
    assert "holds the checkpoints of a training. Give --resume" in result.stderr
    assert not seen(stand_in)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("one slots=2\ntwo slots=x\n", "line 2: 'two slots=x'"),
        ("one slots=2 max_slots=3\n", "line 1: 'one slots=2 max_slots=3'"),
        ("one\n\n$(id)\n", "line 3: '$(id)'"),
        ("-oProxyCommand=id", "line 1: '-oProxyCommand=id'"),
        ("one:0\n", "line 1: 'one:0'"),
        ("# nobody\n", "names no host"),
    ],
)
def test_wrong_hostfile(tmp_path: Path, text: str, wrong: str) -> None:
    """A line that can't be read ends with status 2, its number and text."""
    file = tmp_path / "hosts"
    file.write_text(text)
    result = run(LAUNCH / "cpu_mpi.sh", "--hostfile", str(file))
    assert result.returncode == 2
    assert wrong in result.stderr


WORDS = {  # of an MPI's own, and settings in the environment
    "open-mpi-4": (
        "mpirun (Open MPI) 4.1.8",
        "lib/libmpi.so.40",
        ["--bind-to", "none", "-np", "4", "--prefix", "PREFIX", "-H", "one:3,two:1", "-x", "PATH"],
        ["OMPI_MCA_btl_tcp_if_include=eth7", "OMPI_MCA_oob_tcp_if_include=eth7"],
    ),
    "open-mpi-5": (
        "mpirun (Open MPI) 5.0.11",
        "lib64/libmpi.so.40",
        ["--bind-to", "none", "--map-by", "slot:OVERSUBSCRIBE", "-np", "4", "--prefix", "PREFIX"],
        ["OMPI_MCA_btl_tcp_if_include=eth7", "PRTE_MCA_prte_if_include=eth7"],
    ),
    "mpich": (
        "HYDRA build details:",
        "lib/x86_64-linux-gnu/libmpi.so.12",
        ["-bind-to", "none", "-np", "4", "-hosts", "one:3,two:1", "-launcher", "ssh"],
        [],
    ),
}


@pytest.mark.parametrize("mpi", WORDS)
def test_words_of_each_mpi(stand_in: dict[str, str], tmp_path: Path, mpi: str) -> None:
    """--dry-run prints the command for several hosts as that MPI reads it, and starts nothing."""
    version, library, expected, settings = WORDS[mpi]
    programs = tmp_path / "mpi" / "bin"
    programs.mkdir(parents=True)
    mpirun = programs / "mpirun.other"
    asked = f"#!/bin/sh\necho '{version}'\necho >>'{tmp_path}/asked'\n"
    nobody = "#!/bin/sh\nexit 1\n"  # beside it, and not what was named
    others = {"ssh": SSH, "mpirun": nobody, "python": nobody}
    for name, text in {mpirun.name: asked, **others}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    library = tmp_path / "mpi" / library
    library.parent.mkdir(parents=True)
    library.touch()
    hostfile = tmp_path / "hosts"
    hostfile.write_text("one slots=2 # and\n  two\t\none:1")
    result = run(
        *(LAUNCH / "cpu_mpi.sh", "--dry-run", "--mpirun", str(mpirun)),
        *("--hostfile", str(hostfile), "--interface", "eth7", "--", "--epochs", "2", "a b"),
        env={
            **stand_in,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "CUDA_VISIBLE_DEVICES": "0",  # the workers' are hidden, on every host
        },
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    words = result.stdout.splitlines()
    assert words[0] == "env"
    start = words.index(str(mpirun))
    expected = [word.replace("PREFIX", str(tmp_path / "mpi")) for word in expected]
    assert words[start + 1 : start + 1 + len(expected)] == expected
    settings = [*settings, f"MPI4PY_LIBMPI={library}", "CUDA_VISIBLE_DEVICES=-1"]
    assert set(settings) <= set(words[:start])
    assert "CUDA_VISIBLE_DEVICES" in ",".join(words[start:]).split(",")
    assert ("-iface" in words) == (mpi == "mpich")
    assert words[-10:-7] == [f"{sys.prefix}/bin/python", "-m", "ddp_gd.train"]
    assert words[-4:] == ["2", "a\\ b", "--backend", "mpi"]
    assert not (tmp_path / "runs").exists()
    # By the script, and by the report of this host and of each other one.
    assert (tmp_path / "asked").read_text().count("\n") == 4


def test_mpich_needs_an_interfaces_name(stand_in: dict[str, str], tmp_path: Path) -> None:
    """Its -iface takes no network; nothing is asked or started then."""
    mpirun = tmp_path / "mpirun"
    mpirun.write_text("#!/bin/sh\necho HYDRA\n")
    mpirun.chmod(0o755)
    command = ["--dry-run", "--mpirun", str(mpirun), "--hosts", "localhost"]
    env = {**stand_in, "MPI4PY_LIBMPI": "/opt/libmpi.so.12"}
    result = run(LAUNCH / "cpu_mpi.sh", *command, "--interface", "10.0.0.0/24", env=env)
    assert result.returncode == 2
    assert "'10.0.0.0/24'" in result.stderr


def test_mpirun_without_its_library(stand_in: dict[str, str], tmp_path: Path) -> None:
    """mpi4py would load another MPI's, and each worker be alone: refused, unless it is named."""
    mpirun = tmp_path / "mpirun"
    mpirun.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
    mpirun.chmod(0o755)
    command = [LAUNCH / "cpu_mpi.sh", "--dry-run", "--mpirun", str(mpirun)]
    result = run(*command, env=stand_in, cwd=tmp_path)
    assert result.returncode == 2
    assert f"no libmpi.so.40 in {tmp_path.parent}/lib" in result.stderr
    named = {**stand_in, "MPI4PY_LIBMPI": "/opt/libmpi.so.40"}
    assert run(*command, env=named, cwd=tmp_path).returncode == 0


def test_mpirun_of_no_known_mpi(stand_in: dict[str, str], tmp_path: Path) -> None:
    """Another MPI, whose options nobody knows here, is refused with what it calls itself."""
    other = tmp_path / "mpirun"
    other.write_text("#!/bin/sh\necho 'mpirun of another kind'\n")
    other.chmod(0o755)
    result = run(LAUNCH / "cpu_mpi.sh", "--mpirun", str(other), env=stand_in, cwd=tmp_path)
    assert result.returncode == 1
    assert "'mpirun of another kind'" in result.stderr


def test_no_log_is_written_through_a_link(tmp_path: Path) -> None:
    """A link that lies in the folder of the logs is refused, and what it leads to is left alone."""
    target = tmp_path / "target"
    target.write_text("mine\n")
    (tmp_path / "rank-3.log").symlink_to(target)
    worker = (LAUNCH / "worker.sh", str(tmp_path), "echo", "a line")
    result = run(*worker, env={"OMPI_COMM_WORLD_RANK": "3"})
    assert result.returncode == 2
    assert f"{tmp_path}/rank-3.log is a symbolic link" in result.stderr
    assert target.read_text() == "mine\n"


def test_logs_stay_in_the_folder_of_results(tmp_path: Path) -> None:
    """Not where a symbolic link leads that someone has laid in there."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "logs").symlink_to(tmp_path)
    done = run(LAUNCH / "cpu_mpi.sh", "--dry-run", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "out/logs is a symbolic link" in done.stderr


def test_a_signal_while_a_job_is_being_started(tmp_path: Path) -> None:
    """It reaches the job, too."""
    script = tmp_path / "script.sh"
    script.write_text(
        f". '{LAUNCH}/lib.sh'\nset -T\n"
        """trap '[[ $BASH_COMMAND != "job=\\$!" ]] || kill -TERM $$' DEBUG\n"""
        """run_family sleep 60\necho "status $job_status"\n"""
    )
    result = run(script)
    assert result.stdout == "status 143\n"


@pytest.mark.parametrize(("own", "told"), [(143, 143), (137, 137), (1, 1)])
def test_a_worker_that_is_killed_while_it_saves_is_a_failure(
    tmp_path: Path, own: int, told: int
) -> None:
    """After a signal the status is that of the signal, if the job ended as it was asked to."""
    mpirun = tmp_path / "mpirun"
    mpirun.write_text(
        f"#!/bin/bash\ntrap 'exit {own}' USR1\nkill -TERM $PPID\nwhile :; do sleep 0.1; done\n"
    )
    mpirun.chmod(0o755)
    script = tmp_path / "script.sh"
    script.write_text(f". '{LAUNCH}/lib.sh'\nrun_family {mpirun}\necho \"status $job_status\"\n")
    assert run(script).stdout == f"status {told}\n"


def test_ci_skips_no_cluster_test(tmp_path: Path) -> None:
    """Neither the script without root, nor a test that lacks what it needs."""
    nobody = tmp_path / "id"
    nobody.write_text("#!/bin/sh\necho 1000\n")
    nobody.chmod(0o755)
    script = LAUNCH / "test_cluster.sh"
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert run(script, env={"PATH": path, "CI": "false"}).returncode == 0
    assert run(script, env={"PATH": path, "CI": "true"}).returncode == 1
    tests = [sys.executable, "-m", "pytest", "-m", "cluster", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*tests, str(ROOT / "tests" / "cluster" / "test_slurm.py"), "-k", "without_mpi"],
        env={**os.environ, "PATH": "/nowhere", "CI": "true"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1, found.stdout
    assert "skipped, with CI=true: " in found.stdout


@pytest.mark.timed
@pytest.mark.parametrize(
    ("script", "number"), [("train.sh", signal.SIGINT), ("cpu_mpi.sh", signal.SIGTERM)]
)
def test_signal_ends_every_worker(
    stand_in: dict[str, str], tmp_path: Path, script: str, number: signal.Signals
) -> None:
    """A signal lets all workers save; the script ends after them, and none is left running."""
    with subprocess.Popen(
        ["bash", str(LAUNCH / script), "-np", "2"],
        env={**os.environ, "VIRTUAL_ENV": sys.prefix, **stand_in, "LINGER": "60"},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as job:
        deadline = time.monotonic() + 60
        while len(seen(stand_in)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = [entry[0] for entry in seen(stand_in).values()]
        assert len(workers) == 2
        job.send_signal(number)
        assert job.wait(timeout=600) == 128 + number
        assert list(Path(stand_in["SEEN"]).glob("*.saved"))
    # mpirun kills them and does not wait for the system to clear them away.
    deadline = time.monotonic() + 10
    while (alive := [w for w in workers if Path(f"/proc/{w}").exists()]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.1)
    assert not alive


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [([], "bash launch/s.sh"), (["a b", "$x"], r"bash launch/s.sh a\ b \$x"), (["x" * 5000], "")],
)
def test_what_was_typed(
    arguments: list[str], typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message names it as a shell reads it back; one that nobody would read is left out."""
    monkeypatch.delenv("DDP_GD_COMMAND", raising=False)  # a command's test may have left one
    script = tmp_path / "s.sh"
    script.write_text(f'. \'{LAUNCH}/lib.sh\'\nwas_typed "$@"\nprintf %s "$DDP_GD_COMMAND"\n')
    assert run(script, *arguments).stdout == typed
