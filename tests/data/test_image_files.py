"""Folders of images: found, decoded and resized as Keras does, once; what is broken is named."""

from __future__ import annotations

import io
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import ddp_gd
from ddp_gd.commands import models
from ddp_gd.data import convert, image_files

KINDS = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".bmp": "BMP"}
RANDOM = np.random.default_rng(5)


def content(suffix: str, height: int = 12, width: int = 10, mode: str = "RGB") -> bytes:
    """An image of random colours."""
    colours = RANDOM.integers(0, 256, (height, width, 3)).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(colours).convert(mode).save(file, KINDS[suffix])
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes, one of them with a folder in it, and files that are no images."""
    root = tmp_path / "photos"
    for name, suffixes in {
        "owl": (".png", ".jpg"),
        "cat": (".gif", ".bmp"),
        "dog/a": (".jpg",),
    }.items():
        (root / name).mkdir(parents=True)
        for number, suffix in enumerate(suffixes):
            (root / name / f"{number}{suffix}").write_bytes(content(suffix, 12 + number))
    (root / "cat" / ".hidden.png").write_bytes(b"")
    (root / "notes.txt").write_text("not an image")
    return root


def test_images_are_those_of_keras(photos: Path) -> None:
    """Classes, their order, pixels: as `keras.utils.image_dataset_from_directory` has them."""
    (photos / "cat" / ".hidden.png").unlink()  # Keras would read it
    keras_data = keras.utils.image_dataset_from_directory(
        photos, image_size=(8, 6), shuffle=False, batch_size=None, verbose=False
    )
    data = ddp_gd.load(photos, image_size=(8, 6))
    assert data.class_names == tuple(keras_data.class_names) == ("cat", "dog", "owl")
    assert data.classes == 3
    assert data.features.dtype == np.uint8
    images, labels = (
        np.stack(column) for column in zip(*keras_data.as_numpy_iterator(), strict=True)
    )
    np.testing.assert_array_equal(data.targets[:, 0], labels)
    assert np.abs(data.features - images).max() <= 0.5
    # The size of the first one, of the class that comes first.
    assert ddp_gd.load(photos).features.shape == (5, 12, 10, 3)


def test_the_second_start_decodes_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are kept as arrays; another size or another file is converted anew."""
    monkeypatch.setenv("DDP_GD_CACHE", str(tmp_path / "cache"))
    first = ddp_gd.load(photos, image_size=(4, 4))
    decoded: list[int] = []

    def count(paths: tuple[Path, ...], size: tuple[int, int]) -> object:
        decoded.append(len(paths))
        return image_files.read_images(paths, size)

    monkeypatch.setattr(convert, "read_images", count)
    again = ddp_gd.load(photos, image_size=(4, 4))
    np.testing.assert_array_equal(first.features, again.features)
    assert decoded == []
    ddp_gd.load(photos, image_size=(4, 5))
    (photos / "owl" / "new.png").write_bytes(content(".png"))
    assert len(ddp_gd.load(photos, image_size=(4, 4)).features) == 6
    assert decoded == [5, 6]


def test_what_cant_be_used_is_named(photos: Path) -> None:
    """A broken file, an empty class, one class only, a size that is none."""
    (photos / "empty").mkdir()
    with pytest.raises(ddp_gd.DataError, match=r"empty has no images"):
        ddp_gd.load(photos)
    (photos / "empty").rmdir()
    with pytest.raises(ddp_gd.DataError, match=r"image_size=\(0, 4\) must be height and width"):
        ddp_gd.load(photos, image_size=(0, 4))
    with pytest.raises(ddp_gd.DataError, match="a folder of images for each class, two at least"):
        ddp_gd.load(photos / "owl")
    with pytest.raises(ddp_gd.DataError, match=r"image_size=.* is for a folder of images"):
        ddp_gd.load("diabetes", image_size=(4, 4))
    with pytest.raises(ddp_gd.DataError, match="target='y' names a CSV column"):
        ddp_gd.load(photos, "y")
    bomb = bytearray(content(".png"))
    bomb[16:24] = b"\0\1\0\0" * 2
    for broken, text in (
        (b"GIF89a", "can't be decoded"),
        (b"", "can't be"),
        (bomb, "4294967296 pixels"),
    ):
        (photos / "owl" / "z.png").write_bytes(broken)
        with pytest.raises(ddp_gd.DataError, match=rf"owl/z\.png .*{text}"):
            ddp_gd.load(photos, image_size=(4, 4))


@pytest.mark.parametrize("suffix", KINDS)
def test_damaged_images_are_errors_that_name_them(suffix: str, tmp_path: Path) -> None:
    """Whatever is changed or cut off: the file is decoded, or it is a DataError with its name."""
    path = tmp_path / f"image{suffix}"
    refused = 0
    for number in range(25):
        random = np.random.default_rng(number)
        damaged = bytearray(content(suffix))
        for _ in range(int(random.integers(1, 12))):
            damaged[random.integers(len(damaged))] = random.integers(256)
        if number % 3 == 0:
            del damaged[random.integers(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            (block,) = image_files.read_images([path], (4, 4))
        except ddp_gd.DataError as error:
            refused += str(path) in str(error)
        else:
            refused += block.shape == (1, 4, 4, 3)
    assert refused == 25


def test_the_cnn_takes_pictures_of_any_kind() -> None:
    """With and without a colour axis; what is no picture is refused."""
    for shape in ((28, 28), (8, 6, 3)):
        model = models.build("cnn", shape, 5)
        assert model(tf.zeros([2, *shape])).shape == (2, 5)
        assert sum(isinstance(x, keras.layers.BatchNormalization) for x in model.layers) == 2
    for wrong in ((13,), (2, 2, 3)):
        with pytest.raises(ddp_gd.ConfigError, match="the model cnn is for pictures"):
            models.build("cnn", wrong, 5)
