"""What `load` was asked for, and which files that comes down to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ddp_gd.data.table import Kind, Wanted, open_table
from ddp_gd.errors import DataError

BUILT_IN = {"diabetes": "progression"}  # name -> target column of datasets/<name>.csv
KERAS = "keras:"

_DATASETS = Path(__file__).with_name("datasets")
_SUFFIXES = (".csv", ".parquet", ".npz", ".npy")


@dataclass(frozen=True)
class Request:
    """What `load` was asked for; its arguments, checked for what can be told without a file."""

    source: str | Path | Sequence[str | Path]
    target: str | Sequence[str] | None = None
    features: Sequence[str] | None = None
    sample_weight: str | None = None
    categorical: Sequence[str] = ()
    missing: Literal["error", "drop", "mean"] = "error"
    dtype: str = "float64"
    kinds: tuple[tuple[str, Kind], ...] = ()
    targets_needed: bool = True

    @property
    def name(self) -> str:
        """The source in words."""
        one = isinstance(self.source, (str, Path))
        sources = [self.source] if one else list(self.source)  # type: ignore[arg-type]
        return ", ".join(map(str, sources))


@dataclass(frozen=True)
class Origin:
    """What a request comes down to.

    Attributes:
        kind: `"table"`, `"npz"`, `"npy"` or `"keras"`.
        paths: the files.
        wanted: of a table.
        keras: of `keras.datasets`, the module and the part.
        arrays: the `.npy` files by what they hold: x, y, sample_weight.
    """

    kind: Literal["table", "npz", "npy", "keras"]
    paths: tuple[Path, ...] = ()
    wanted: Wanted = Wanted()  # noqa: RUF009
    keras: tuple[str, str] = ("", "")
    arrays: Mapping[str, Path] = field(default_factory=dict)


def find(request: Request) -> Origin:
    """Find the files of a request.

    Raises:
        DataError: there is no such file, or an option doesn't go with it.
    """
    if request.missing not in ("error", "drop", "mean"):
        raise DataError(f"missing={request.missing!r} must be 'error', 'drop' or 'mean'.")
    if request.dtype not in ("float64", "float32", "float16"):
        raise DataError(f"dtype={request.dtype!r} must be 'float64', 'float32' or 'float16'.")
    given = _sources(request)
    first = str(given[0])
    wanted = _wanted(request, BUILT_IN.get(first))
    if first.startswith(KERAS):
        _refuse_columns(wanted, first)
        name, _, part = first.removeprefix(KERAS).partition("/")
        if part not in ("", "test"):
            raise DataError(f"{first!r}: give {KERAS}{name} or {KERAS}{name}/test.")
        return Origin("keras", keras=(name, part or "train"))
    paths = [_DATASETS / f"{first}.csv"]
    if first not in BUILT_IN:
        paths = [path for item in given for path in _files(Path(item))]
    suffix = _suffix(paths, request.name)
    if suffix == ".npy":
        return _npy_source(paths, wanted, request)
    if suffix == ".npz":
        _refuse_columns(wanted, str(paths[0]))
        if len(paths) > 1:
            raise DataError(f"{request.name}: give one .npz file, which holds x and y.")
        return Origin("npz", tuple(paths))
    if not wanted.target and request.targets_needed:
        names = ", ".join(map(repr, open_table(paths[:1], Wanted()).names[:30]))
        raise DataError(f"Name the target column of {paths[0]}; its columns are {names}.")
    return Origin("table", tuple(paths), wanted)


def _sources(request: Request) -> list[str | Path]:
    """What was named, one or several; a data set of its own stands alone."""
    given = [request.source] if isinstance(request.source, (str, Path)) else list(request.source)
    if not given:
        raise DataError("No data were named: give a file, a folder or a built-in name.")
    alone = [str(g) for g in given if str(g) in BUILT_IN or str(g).startswith(KERAS)]
    if alone and len(given) > 1:
        raise DataError(f"{alone[0]!r} is a data set of its own: give nothing beside it.")
    if "" in given:
        raise DataError(f"Unknown data '': give a file, a folder or one of {', '.join(BUILT_IN)}.")
    return given


def _wanted(request: Request, built_in_target: str | None) -> Wanted:
    """The columns of a request."""
    target = (request.target,) if isinstance(request.target, str) else tuple(request.target or ())
    if built_in_target and request.targets_needed:
        target = target or (built_in_target,)
    wanted = Wanted(
        features=None if request.features is None else tuple(request.features),
        target=target,
        sample_weight=request.sample_weight,
        categorical=tuple(request.categorical),
        missing=request.missing,
        kinds=request.kinds,
    )
    if request.targets_needed:
        return wanted
    return dataclasses.replace(wanted, remedy="Fill in: the model needs all of its features")


def _suffix(paths: list[Path], name: str) -> str:
    """How the names of all files end; a file that was given twice is refused, too."""
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise DataError(
                f"{path} was given twice: its rows would stand on both sides of the split."
            )
        seen.add(path.resolve())
    suffixes = sorted({path.suffix.lower() for path in paths})
    if len(suffixes) > 1:
        raise DataError(f"{name} mixes {' and '.join(suffixes)} files: give files of one kind.")
    return suffixes[0]


def _files(path: Path) -> list[Path]:
    """A file, or the files of a folder in the order of their names."""
    known = ", ".join(_SUFFIXES)
    if path.is_dir():
        found = sorted(
            file
            for file in path.iterdir()
            if file.suffix.lower() in (".csv", ".parquet")
            and not file.name.startswith((".", "_"))
            and file.is_file()
        )
        if not found:
            raise DataError(
                f"{path} is a folder without .csv or .parquet files: give the file, or the folder "
                "that holds such files itself."
            )
        return found
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"Unknown data {str(path)!r}: give a file ({known}), a folder of such, a built-in name "
            f"({', '.join(BUILT_IN)}) or one of Keras's ({KERAS}mnist)."
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist, or is not a regular file: check the path.")
    return [path]


def _refuse_columns(wanted: Wanted, source: str) -> None:
    options = {
        "target": wanted.target,
        "features": wanted.features,
        "sample_weight": wanted.sample_weight,
        "categorical": wanted.categorical,
    }
    for name, value in options.items():
        if value:
            value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
            raise DataError(
                f"{name} {value!r} names a CSV column or a file, but {source} holds its targets in "
                "the array 'y' (and weights in 'sample_weight'): leave it out."
            )


def _npy_source(paths: list[Path], wanted: Wanted, request: Request) -> Origin:
    if wanted.features or wanted.categorical:
        raise DataError(f"{paths[0]} has no named columns: leave out features and categorical.")
    if len(paths) > 1 or len(wanted.target) != int(request.targets_needed):
        raise DataError(
            f"{request.name} holds features: name one .npy file, and the one of the targets as the "
            "target."
        )
    arrays = {"x": paths[0]}
    if wanted.target:
        arrays["y"] = Path(wanted.target[0])
    if wanted.sample_weight:
        arrays["sample_weight"] = Path(wanted.sample_weight)
    for other in list(arrays.values())[1:]:
        if other.suffix.lower() != ".npy" or not other.is_file():
            raise DataError(
                f"'{other}' is not a .npy file: features in {paths[0]} need their targets and "
                "weights in files of their own."
            )
    return Origin("npy", tuple(arrays.values()), arrays=arrays)
