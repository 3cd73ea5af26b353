"""Folders of images: a class for each folder in them, as `keras.utils` reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddp_gd.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # Keras's
_MOST_PIXELS = 10**8  # of one file: a few bytes may stand for more memory than there is
_HEADER_BYTES = 32
_AT_ONCE = 64


class Folder(NamedTuple):
    """The images below a folder.

    Attributes:
        paths: in the order of classes and names.
        classes: the class number of each; empty where there are no folders in it.
        names: of the classes, those of the folders, sorted.
    """

    paths: tuple[Path, ...]
    classes: tuple[int, ...]
    names: tuple[str, ...]


def find_images(folder: Path) -> Folder | None:
    """Find the images in the folders of `folder`, or in itself; None where there are none."""
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."]
    by_class = [(path.name, list(_images(path))) for path in inner]
    if any(found for _, found in by_class):
        names = tuple(name for name, _ in by_class)
        classes = [number for number, (_, found) in enumerate(by_class) for _ in found]
        paths = [path for _, found in by_class for path in found]
        return Folder(tuple(paths), tuple(classes), names)
    paths = [path for path in sorted(folder.iterdir()) if _is_image(path)]
    return Folder(tuple(paths), (), ()) if paths else None


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image.

    Raises:
        DataError: it can't be decoded.
    """
    height, width, _ = _decoded(path).shape
    return int(height), int(width)


def read_images(paths: Sequence[Path], size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Decode images, some at a time: uint8, shape (images, height, width, 3).

    They are resized as `keras.utils.image_dataset_from_directory` does by default (bilinear,
    without regard to the aspect ratio), and rounded; of a moving picture the first one counts.

    Raises:
        DataError: naming the file that can't be decoded.
    """
    import tensorflow as tf

    for start in range(0, len(paths), _AT_ONCE):
        block = []
        for path in paths[start : start + _AT_ONCE]:
            image = _decoded(path)
            if tuple(image.shape[:2]) != size:
                resized = tf.image.resize(image, size, method="bilinear")
                image = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
            block.append(image.numpy())
        yield np.stack(block)


def _images(folder: Path) -> Iterator[Path]:
    """Those in a folder and the folders in it, in the order of names."""
    for path in sorted(folder.rglob("*")):
        if _is_image(path):
            yield path


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()


def _decoded(path: Path) -> Any:
    """The picture in a file, uint8, shape (height, width, 3)."""
    import tensorflow as tf

    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        pixels = _pixels(content)
        if pixels > _MOST_PIXELS:
            raise DataError(
                f"{path} says that it has {pixels} pixels, and at most {_MOST_PIXELS} are taken: "
                "make it smaller."
            )
        with tf.device("/cpu:0"):
            image = tf.io.decode_image(content, channels=3, expand_animations=False)
    except (tf.errors.OpError, ValueError, struct.error) as error:
        if isinstance(error, DataError):
            raise
        text = str(getattr(error, "message", error)).splitlines()[0][:200]
        raise DataError(
            f"{path} can't be decoded ({text}): repair it, or remove it. It must be a PNG, JPEG, "
            "GIF or BMP."
        ) from None
    if image.shape.rank != 3 or 0 in image.shape:
        raise DataError(f"{path} has no pixels: remove it.")
    return image


def _pixels(content: bytes) -> int:
    """How many the header of a file announces, before anything is unpacked."""
    import tensorflow as tf

    head = content[:_HEADER_BYTES]
    if head.startswith(b"\x89PNG"):
        width, height = struct.unpack(">II", head[16:24])
    elif head.startswith(b"GIF8"):
        width, height = struct.unpack("<HH", head[6:10])
    elif head.startswith(b"BM"):
        width, height = struct.unpack("<ii", head[18:26])
    elif head.startswith(b"\xff\xd8"):
        height, width, _ = tf.io.extract_jpeg_shape(content).numpy().tolist()
    else:
        raise ValueError("it begins as none of the kinds does")
    return abs(width * height)
