"""The predictions of a saved model for the rows of a file, computed by all workers."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.csv

from ddp_gd.batching.plan import Plan
from ddp_gd.batching.views import Reader, Selection
from ddp_gd.commands import models
from ddp_gd.commands.config import PredictConfig
from ddp_gd.data import load
from ddp_gd.data.dataset import Dataset
from ddp_gd.data.image_files import find_images
from ddp_gd.data.request import KERAS, Request
from ddp_gd.errors import ConfigError, DataError, ModelError
from ddp_gd.files import ArrayWriter, new_file, require_new_file
from ddp_gd.job import runtime
from ddp_gd.training.predict import predict

_VALUES_AT_A_TIME = 2**22  # of the model's output
_ROWS_AT_A_TIME = 2**16  # of the data


def run(config: PredictConfig) -> None:
    """Predict as `config` says; rank 0 writes.

    Raises:
        DdpGdError: something can't be used; nothing has been written.
    """
    runtime.init(backend=config.backend, bitwise=config.bitwise)
    leader = runtime.rank() == 0
    out = Path(config.out)
    if leader:
        require_new_file("out", config.out)
    about = models.read_about(Path(config.model))
    model = _load(config.model)
    dataset = load.fetch(_request(config, about, model), config.cache)
    x = _inputs(dataset)
    _require_input(model, x, config.model)
    if leader:
        _warn_of_unknown(dataset, about)
    blocks = _blocks(model, len(dataset.features), config.batch_size)
    with _writer(out, about) if leader else contextlib.nullcontext(_ignore) as write:
        for rows in blocks:
            write(_predict(model, keras.tree.map_structure(lambda a, r=rows: a[r], x), config))
    if leader:
        count = len(dataset.features)
        print(f"{config.out}: {count} prediction{'s' * (count != 1)} for {dataset.source}")


def _load(path: str) -> keras.Model:
    """Load a model without running any code that is in it."""
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)
        raise ModelError(
            f"--model {path} can't be loaded: {reason} A model with layers or code of its own "
            "needs a script of its own: load it there, and call ddp_gd.predict(model, x)."
        ) from error


def _request(config: PredictConfig, about: dict[str, Any], model: keras.Model) -> Request:
    """Ask for the columns that the model was trained on, or for images of its size."""
    first = config.data[0]
    of_table = about.get("kinds") is not None
    is_array = first.startswith(KERAS) or Path(first).suffix.lower() in (".npy", ".npz")
    columns = of_table and not is_array
    return Request(
        source=config.data,
        features=about["features"] if columns else None,
        kinds=tuple(zip(about["features"], about["kinds"], strict=True)) if columns else (),
        missing="mean" if about.get("missing") == "mean" else "error",
        dtype=about.get("dtype", "float64"),
        targets_needed=False,
        image_size=_image_size(Path(first), model),
    )


def _image_size(folder: Path, model: keras.Model) -> tuple[int, int] | None:
    """Height and width of the images that a model takes, where a folder has images."""
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or not folder.is_dir():
        return None
    height, width = inputs[0].shape[1:3]
    return (height, width) if height and width and find_images(folder) else None


def _inputs(dataset: Dataset) -> Any:
    """The features as the model takes them: an array, or one for each column by its name."""
    features = dataset.features
    rows = len(features)
    if not dataset.categories:
        return Selection(features, rows)
    columns = {}
    for place, name in enumerate(dataset.feature_names):
        column = features[:, place : place + 1]
        texts = dataset.categories.get(place)
        columns[name] = Selection(column, rows, change=None if texts is None else _texts(texts))
    return columns


def _texts(texts: tuple[str, ...]) -> Callable[[np.ndarray], np.ndarray]:
    table = np.array([*texts, ""], dtype=object)
    return lambda numbers: table[numbers.astype(np.int64)]


def _require_input(model: keras.Model, x: Any, path: str) -> None:
    """Refuse rows that the model doesn't take."""
    inputs = getattr(model, "inputs", None) or []
    wanted = {i.name: tuple(i.shape[1:]) for i in inputs}
    if isinstance(x, dict):
        if set(wanted) != set(x):
            raise DataError(f"--model {path} takes {sorted(wanted)}, the data have {sorted(x)}.")
    elif len(inputs) != 1:
        raise DataError(
            f"--model {path} takes {sorted(wanted) or 'inputs of its own'}; only a model with one "
            "input, or one that ddp_gd.train saved, can be given the rows of a file."
        )
    elif not _fits(tuple(inputs[0].shape[1:]), x.shape[1:]):
        raise DataError(
            f"--model {path} takes rows of shape {tuple(inputs[0].shape[1:])}, the data have rows "
            f"of shape {x.shape[1:]}."
        )


def _fits(wanted: tuple[int | None, ...], given: tuple[int, ...]) -> bool:
    same = [w in (None, g) for w, g in zip(wanted, given, strict=False)]
    return len(wanted) == len(given) and all(same)


def _blocks(model: keras.Model, rows: int, batch_size: int) -> list[slice]:
    """Cut the rows into pieces of whole mini-batches whose predictions fit into memory."""
    plan = Plan(rows, batch_size)  # refuses a size that can't be used
    shape = model.outputs[0].shape[1:] if getattr(model, "outputs", None) else (1,)
    width = int(np.prod([size or 1 for size in shape]))
    size = max(1, _VALUES_AT_A_TIME // (width * plan.batch_size)) * plan.batch_size
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _predict(model: keras.Model, x: Any, config: PredictConfig) -> np.ndarray:
    floatx = keras.config.floatx()
    # float32 would forget the last digits of a column with a large mean before it is normalised.
    keras.config.set_floatx("float64")
    try:
        found = predict(model, x, config.batch_size, verbose=0)
    finally:
        keras.config.set_floatx(floatx)
    if not isinstance(found, np.ndarray):
        raise ModelError(f"--model {config.model} has several outputs; only one can be written.")
    return found


def _ignore(predictions: np.ndarray) -> None:
    """Drop the predictions, as all workers but rank 0 do."""


@contextlib.contextmanager
def _writer(out: Path, about: dict[str, Any]) -> Iterator[Callable[[np.ndarray], None]]:
    """Write predictions to a new file that is whole or not there."""
    try:
        with new_file(out) as partial, contextlib.ExitStack() as files:
            opened: list[Any] = []  # with the first predictions, which tell dtype and columns

            def write(predictions: np.ndarray) -> None:
                if out.suffix.lower() == ".npy":
                    if not opened:
                        writer = ArrayWriter(partial, predictions.dtype, predictions.shape[1:])
                        opened.append(files.enter_context(writer))
                    opened[0].append(predictions)
                else:
                    table = pa.table(_columns(predictions, about, out))
                    if not opened:
                        writer = pa.csv.CSVWriter(str(partial), table.schema)
                        opened.append(files.enter_context(writer))
                    opened[0].write_table(table)

            yield write
            opened[0].close()
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(
            f"--out {out} can't be written ({error}): make room, or choose another folder."
        ) from error


def _chances(values: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    """The probability of each class, shape (rows, classes), where the model is of classes."""
    if about.get("loss") == "binary_crossentropy" and values.shape[1] == 1:
        one = 1 / (1 + np.exp(-values)) if about.get("logits") else values
        return np.concatenate([1 - one, one], axis=1)
    if about.get("logits"):
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    return values


def _warn_of_unknown(dataset: Dataset, about: dict[str, Any]) -> None:
    """Say which texts the training did not see: to the model they are all the same, nothing."""
    for place, texts in dataset.categories.items():
        name = dataset.feature_names[place]
        known = about.get("texts", {}).get(name, texts)
        unknown = [number for number, text in enumerate(texts) if text not in known]
        if not unknown:
            continue
        reader = Reader(dataset.features)
        rows = len(dataset.features)
        starts = range(0, rows, _ROWS_AT_A_TIME)
        blocks = (reader.take(slice(s, s + _ROWS_AT_A_TIME))[:, place] for s in starts)
        count = sum(int(np.isin(block, unknown).sum()) for block in blocks)
        if count:
            sys.stderr.write(
                f"ddp_gd: column {name!r}: {count} of {rows} cells hold texts that the training "
                f"did not see, such as {texts[unknown[0]]!r}\n"
            )


def _columns(predictions: np.ndarray, about: dict[str, Any], out: Path) -> dict[str, Any]:
    """The columns of the file, by name."""
    if predictions.ndim != 2:
        raise ConfigError(
            f"--out {out}: a prediction has shape {predictions.shape[1:]}, which is no row of a "
            "table; give FILE.npy."
        )
    names = list(about.get("targets", ()))
    classes = about.get("class_names")
    chances = _chances(predictions.astype(np.float64), about)
    if classes and chances.shape[1] == len(classes):
        best = chances.argmax(axis=1)
        return {
            names[0] if len(names) == 1 else "class": np.array(classes, dtype=object)[best],
            "probability": chances[np.arange(len(best)), best],
        }
    if len(names) != predictions.shape[1]:
        names = [f"prediction{i}" for i in range(predictions.shape[1])]
    return dict(zip(names, predictions.T, strict=True))
