"""The files that a request comes down to."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ddp_gd.data.image_files import Folder, find_images, size_of
from ddp_gd.data.request import KERAS, Request
from ddp_gd.data.table import names_of
from ddp_gd.errors import DataError

BUILT_IN = {"diabetes": "progression"}  # name -> target column of datasets/<name>.csv

_DATASETS = Path(__file__).with_name("datasets")
_SUFFIXES = (".csv", ".parquet", ".npz", ".npy")


@dataclass(frozen=True)
class Origin:
    """What a request comes down to.

    Attributes:
        kind: `"table"`, `"npz"`, `"npy"`, `"keras"` or `"images"`.
        request: with the target of a built-in data set.
        paths: the files.
        keras: of `keras.datasets`, the module and the part.
        arrays: the `.npy` files by what they hold: x, y, sample_weight.
        images: the images of a folder; their paths are `paths`, too.
    """

    kind: Literal["table", "npz", "npy", "keras", "images"]
    request: Request
    paths: tuple[Path, ...] = ()
    keras: tuple[str, str] = ("", "")
    arrays: Mapping[str, Path] = field(default_factory=dict)
    images: Folder | None = None


def find(request: Request) -> Origin:
    """Find the files of a request.

    Raises:
        DataError: there is no such file, or an option doesn't go with it.
    """
    first = _first(request)
    images = _image_source(request)
    if images is not None:
        return images
    if request.image_size is not None:
        raise DataError(
            f"image_size={request.image_size!r} is for a folder of images, and {request.name} is "
            "none: leave it out."
        )
    if first.startswith(KERAS):
        _refuse_columns(request, first)
        name, _, part = first.removeprefix(KERAS).partition("/")
        if part not in ("", "test"):
            raise DataError(f"{first!r}: give {KERAS}{name} or {KERAS}{name}/test.")
        return Origin("keras", request, keras=(name, part or "train"))
    if first in BUILT_IN:
        paths = [_DATASETS / f"{first}.csv"]
        if request.targets_needed and not request.target:
            request = dataclasses.replace(request, target=(BUILT_IN[first],))
    else:
        paths = [path for item in request.source for path in _files(Path(item))]
    suffix = _suffix(paths, request.name)
    if suffix == ".npy":
        return _npy_source(paths, request)
    if suffix == ".npz":
        _refuse_columns(request, str(paths[0]))
        if len(paths) > 1:
            raise DataError(f"{request.name}: give one .npz file, which holds x and y.")
    elif request.targets_needed and not request.target:
        names = ", ".join(map(repr, names_of(paths[0])[:30]))
        raise DataError(f"Name the target column of {paths[0]}; its columns are {names}.")
    return Origin("npz" if suffix == ".npz" else "table", request, tuple(paths))


def _image_source(request: Request) -> Origin | None:
    """A folder of folders of images, one for each class; None if it is something else."""
    folder = Path(request.source[0])
    tables = (".csv", ".parquet")
    if len(request.source) > 1 or not folder.is_dir():
        return None
    if any(path.suffix.lower() in tables for path in folder.iterdir()):
        return None
    found = find_images(folder)
    if found is None:
        return None
    _refuse_columns(request, str(folder))
    size = request.image_size
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise DataError(f"image_size={size!r} must be height and width, each 1 or more.")
    if request.targets_needed and len(found.names) < 2:
        raise DataError(
            f"{folder} must hold a folder of images for each class, two at least; it has "
            f"{', '.join(map(repr, found.names)) or 'images only'}."
        )
    for number, name in enumerate(found.names):
        if request.targets_needed and number not in found.classes:
            raise DataError(f"{folder / name} has no images: remove it, or fill it.")
    request = dataclasses.replace(request, image_size=size or size_of(found.paths[0]))
    return Origin("images", request, found.paths, images=found)


def _first(request: Request) -> str:
    """The first that was named, once the request is known to make sense."""
    if request.missing not in ("error", "drop", "mean"):
        raise DataError(f"missing={request.missing!r} must be 'error', 'drop' or 'mean'.")
    if request.dtype not in ("float64", "float32", "float16"):
        raise DataError(f"dtype={request.dtype!r} must be 'float64', 'float32' or 'float16'.")
    if not request.source:
        raise DataError("No data were named: give a file, a folder or a built-in name.")
    if "" in request.source:
        raise DataError(f"Unknown data '': give a file, a folder or one of {', '.join(BUILT_IN)}.")
    given = [str(source) for source in request.source]
    for name in given:
        if len(given) > 1 and (name in BUILT_IN or name.startswith(KERAS)):
            raise DataError(f"{name!r} is a data set of its own: give nothing beside it.")
    return given[0]


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
                f"{path} is a folder without .csv or .parquet files, and without folders of "
                "images: give the file, or the folder that holds such files itself."
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


def _refuse_columns(request: Request, source: str) -> None:
    for name in ("target", "features", "exclude", "sample_weight", "categorical"):
        if value := getattr(request, name):
            value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
            raise DataError(
                f"{name}={value!r} names a CSV column or a file, but {source} holds its targets in "
                "the array 'y' (and weights in 'sample_weight'): leave it out."
            )


def _npy_source(paths: list[Path], request: Request) -> Origin:
    if request.features or request.exclude or request.categorical:
        raise DataError(
            f"{paths[0]} has no named columns: leave out features, exclude and categorical."
        )
    if len(paths) > 1 or len(request.target) != int(request.targets_needed):
        raise DataError(
            f"{request.name} holds features: name one .npy file, and the one of the targets as the "
            "target."
        )
    arrays = {"x": paths[0]}
    if request.target:
        arrays["y"] = Path(request.target[0])
    if request.sample_weight:
        arrays["sample_weight"] = Path(request.sample_weight)
    for other in list(arrays.values())[1:]:
        if other.suffix.lower() != ".npy" or not other.is_file():
            raise DataError(
                f"'{other}' is not a .npy file: features in {paths[0]} need their targets and "
                "weights in files of their own."
            )
    return Origin("npy", request, tuple(arrays.values()), arrays=arrays)
