"""What can be set on the command lines of `python -m ddp_gd.train` and the other commands.

Each field is documented here and nowhere else: this text is what `--help` prints.
"""

import dataclasses
import math
from typing import Any, Literal

import tyro

from ddp_gd.errors import ConfigError

Optimizer = Literal["sgd", "adam", "rmsprop"]
Backend = Literal["auto", "horovod", "mpi", "single"]


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What is trained on what: the options of every command that trains on the user's data."""

    data: tuple[str, ...] = ("diabetes",)
    """What to train on: a .csv or .parquet file, several of one kind, or a folder of them (with
    --target); a folder with a folder of images for each class; FILE.npz with the arrays x and y;
    FILE.npy (with --target FILE.npy); keras:mnist and the other arrays of keras.datasets; or the
    built-in `diabetes` (442 patients, 10 measurements, progression of the disease after one
    year)."""

    target: tuple[str, ...] = ()
    """Column to predict, or several."""

    features: tuple[str, ...] = ()
    """Columns to predict from; default: all others."""

    exclude: tuple[str, ...] = ()
    """Columns not to predict from, in place of naming all --features."""

    sample_weight: str | None = None
    """Column with the weight of each row."""

    categorical: tuple[str, ...] = ()
    """Columns to take as categories although they hold numbers. Columns of text, or of true and
    false, are taken so anyway: each text becomes a feature that is 0 or 1."""

    missing: Literal["error", "drop", "mean"] = "error"
    """Rows with missing cells: `drop` leaves them out, `mean` puts the mean of the training rows in
    the place of a missing number, `error` refuses them."""

    image_size: tuple[int, int] | None = None
    """Height and width to which images are resized; default: those of the first one."""

    model: str = "mlp"
    """`linear`, `mlp`, `cnn` (for images: two convolutions, each with BatchNormalization), or
    path/to/file.py:function. The function is called with the shape of one
    row and the number of outputs, and returns a keras.Model; if it comes compiled, it keeps its own
    loss, optimizer and metrics."""

    hidden: tuple[int, ...] = (64, 64)
    """Units of each hidden layer of `mlp`."""

    loss: str = "auto"
    """Name of a Keras loss. `auto` is sparse_categorical_crossentropy for targets that are text,
    true and false, or whole numbers from 0 on of which each one occurs; else mean_squared_error.
    The built-in models give logits to the cross-entropies."""

    validation_split: float = 0.1
    """Fraction of the rows, drawn at random by the seed, kept for validation; 0 keeps none."""


@dataclasses.dataclass(frozen=True)
class TrainConfig(TaskConfig):
    """Train a Keras model on a file or a built-in data set, with any number of workers.

    Alone, `python -m ddp_gd.train` uses one process; `horovodrun -np N python -m ddp_gd.train`
    makes the same training with N workers. The number of workers changes nothing below.
    """

    dtype: Literal["float64", "float32", "float16"] = "float64"
    """Type in which the numbers of a .csv or .parquet file are kept."""

    cache: bool = True
    """Keep what such files are converted to for the next start (in $DDP_GD_CACHE, or
    ~/.cache/ddp_gd/data, at most $DDP_GD_CACHE_BYTES, 64 GB by default)."""

    optimizer: Optimizer = "sgd"
    """Keras's optimizer of that name."""

    lr: float = 0.01
    """Learning rate, of one update of the whole global mini-batch."""

    decay: float = 0.0
    """The learning rate of update number k, counted from 0, is lr / (1 + decay * k)."""

    momentum: float = 0.0
    """Momentum of sgd or rmsprop, from 0 to below 1."""

    nesterov: bool = False
    """Nesterov momentum, for sgd with momentum."""

    batch_size: int | Literal["full"] = 32
    """Observations averaged into one update, over all workers together; `full` takes all of the
    training data."""

    micro_batch_size: int | None = None
    """Compute a worker's share in pieces of so many rows, for batches whose activations don't fit
    into memory; the update stays the same."""

    bitwise: bool = False
    """The same weights, optimizer state and history to the last bit at any number of workers.
    Without --micro-batch-size a mini-batch is computed in eight or more pieces of at most 128 rows,
    each on one thread, several at once."""

    audit: float = 0.0
    """With --bitwise: the part of all micro-batches that another worker computes, too, to be
    compared before the update; 0.01 finds a worker that computes wrong. See docs/audit.md."""

    epochs: int = 20
    """Passes over the training data."""

    normalize: bool = True
    """Give features, and targets of a regression, mean 0 and standard deviation 1, by the training
    rows' statistics. The saved model does it inside: it takes and gives the data's own units."""

    seed: int | None = None
    """Seed of initial weights, split and order of rows, from 0 to 2**32 - 1; default: drawn."""

    backend: Backend = "auto"
    """How workers exchange gradients: `auto` is Horovod where there are several, and mpi where
    Horovod is missing."""

    checkpoint: str | None = None
    """Folder to save the training in, at the end of every epoch or as the next two options say, so
    that it can continue after a crash. It must be empty, unless --resume is given."""

    checkpoint_steps: int | None = None
    """Save after every so many updates."""

    checkpoint_seconds: float | None = None
    """Save when so much time has passed since the last time."""

    resume: bool = False
    """Go on from the newest checkpoint in the --checkpoint folder, with any number of workers, or
    begin if there is none. Data and settings must be the same, but --epochs may be more."""

    tensorboard: bool = False
    """Write what TensorBoard shows into the folder tensorboard of the results, while it trains."""

    out: str | None = None
    """Folder for the results; it must be new or empty, but for what the same training left there
    unfinished, with --resume. Default: a new one under runs/."""

    verbose: Literal["auto", "0", "1", "2"] = "auto"
    """Progress: 0 none, 1 a bar, 2 one line an epoch; `auto` is the bar on a terminal."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(f"--epochs is {self.epochs}; it must be at least 1.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"--lr is {self.lr}; it must be a number above 0.")
        if not (math.isfinite(self.decay) and self.decay >= 0):
            raise ConfigError(f"--decay is {self.decay}; it must be a number of at least 0.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"--momentum is {self.momentum}; it must be from 0 to below 1.")
        if not 0 <= self.audit <= 1:
            raise ConfigError(f"--audit is {self.audit}; it must be from 0 to 1, such as 0.01.")
        if self.audit and not self.bitwise:
            raise ConfigError(f"--audit {self.audit} compares to the last bit: add --bitwise.")
        if self.momentum and self.optimizer == "adam":
            raise ConfigError("--momentum is for sgd and rmsprop; adam has its own. Leave it out.")
        if self.nesterov and not (self.optimizer == "sgd" and self.momentum):
            raise ConfigError("--nesterov needs --optimizer sgd and a --momentum above 0.")
        if self.missing == "mean" and not self.normalize:
            raise ConfigError(
                "--missing mean and --no-normalize exclude each other: use --missing drop."
            )
        for name in ("checkpoint_steps", "checkpoint_seconds", "resume"):
            if getattr(self, name) and self.checkpoint is None:
                raise ConfigError(f"{_option(name)} needs --checkpoint FOLDER.")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed is {self.seed}; it must be from 0 to 2**32 - 1.")


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Predict with a model that `python -m ddp_gd.train` saved, with any number of workers.

    Models saved by other programs are taken, too, if they were saved with `model.save("m.keras")`,
    need no code of their own, and take one array.
    """

    model: str
    """The model.keras of a training's results, or another .keras file."""

    data: tuple[str, ...]
    """Rows to predict for: as in ddp_gd.train, with the same columns of features; others, such as
    the target, are ignored."""

    out: str
    """FILE.csv for the predictions, a row for each row, in the same order: a column for each
    target, or the most probable class and its probability. FILE.npy for what the model itself
    returns, of any shape. The file must be new."""

    batch_size: int = 1024
    """Rows computed at a time."""

    cache: bool = True
    """Keep what .csv and .parquet files are converted to for the next start."""

    backend: Backend = "auto"
    """How workers exchange what they computed, as in ddp_gd.train."""

    bitwise: bool = False
    """Compute on one thread, as a training with --bitwise does."""

    def __post_init__(self) -> None:
        if not self.out.lower().endswith((".csv", ".npy")):
            raise ConfigError(f"--out {self.out} must end in .csv or .npy.")


@dataclasses.dataclass(frozen=True)
class ContrastConfig:
    """Show what batch_size is: the same data, model, learning rate and number of gradient
    evaluations, trained (a) with one averaged update per global mini-batch, (b) with workers that
    update independently, (c) the same with their weights averaged at the end or every few steps,
    (d) with single-sample updates, (e) with the full batch.

    Alone, `python -m ddp_gd.contrast` computes the workers of (b) and (c) one after the other;
    `horovodrun -np N python -m ddp_gd.contrast` runs N of them. Data are the built-in `diabetes`,
    the model is ddp_gd.train's `mlp`.
    """

    out: str | None = None
    """Folder for contrast.png and contrast.json; it must be new or empty. Default: a new one under
    runs/."""

    workers: int | None = None
    """Workers of (b) and (c), where this process is alone; default: 4. A job has its own number."""

    batch_size: int = 32
    """Rows of a global mini-batch of (a), (b) and (c); at least one for each worker."""

    lr: float = 0.05
    """Learning rate of every update, of all trainings."""

    epochs: int = 10
    """Passes over the training data, of all trainings."""

    seeds: int = 5
    """Train everything so many times, with the seeds 0, 1, 2, ... of initial weights and order of
    rows."""

    every: int = 10
    """Steps between two averagings of the workers' weights, in (c)."""

    backend: Backend = "auto"
    """How workers exchange gradients, as in ddp_gd.train."""

    def __post_init__(self) -> None:
        TrainConfig(epochs=self.epochs, lr=self.lr)  # checks these
        for name in ("seeds", "every"):
            if (number := getattr(self, name)) < 1:
                raise ConfigError(f"--{name} is {number}; it must be at least 1.")
        if self.workers is not None and self.workers < 2:
            raise ConfigError(f"--workers is {self.workers}; there must be 2 or more to contrast.")


@dataclasses.dataclass(frozen=True)
class StudyConfig(TaskConfig):
    """Train every combination of batch size, learning rate, optimizer and number of workers once.

    Alone, `python -m ddp_gd.study` starts a job for each number of workers itself; under
    `horovodrun -np N` it trains with those N. Run again, it goes on with what is missing.
    """

    batch_sizes: tuple[int | Literal["full"], ...] = (1, 4, 20, 100, "full")
    """Observations averaged into one update."""

    lr: tuple[float, ...] = (0.003, 0.03, 0.3)
    """Learning rates."""

    optimizers: tuple[Optimizer, ...] = ("sgd", "adam")
    """Keras's optimizers of these names."""

    workers: tuple[int, ...] | None = None
    """Numbers of workers; default: 1 and 2, or those of the job that this runs in."""

    epochs: int = 10
    """Passes over the training data, at least 2: the first one is not timed, since it includes
    building TensorFlow's graphs."""

    out: str = "runs/study"
    """Folder for the results and the record of each training."""

    model: str = "mlp"
    """`linear`, `mlp`, or path/to/file.py:function, which returns a model that isn't compiled."""

    seed: int = 0
    """Seed of initial weights, split and order of rows: the same in every training."""

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "lr", "optimizers", "workers"):
            values = getattr(self, name)
            if values is None and name == "workers":
                continue
            if not values:
                raise ConfigError(f"{_option(name)} is empty; give one value or more.")
            if len(set(values)) < len(values):
                listed = " ".join(map(str, values))
                raise ConfigError(f"{_option(name)} {listed} names a value twice; name it once.")
        if min(self.workers or (1,)) < 1:
            raise ConfigError(f"--workers has {min(self.workers or ())}; it must be at least 1.")
        if self.epochs < 2:
            raise ConfigError(f"--epochs is {self.epochs}; it must be at least 2: see --help.")
        for rate in self.lr:
            self.training(self.batch_sizes[0], rate, self.optimizers[0])  # checks the rest

    def training(self, batch_size: int | Literal["full"], lr: float, optimizer: Any) -> TrainConfig:
        """The options of one of the trainings."""
        same = {field.name for field in dataclasses.fields(TrainConfig)} - {"out", "lr"}
        common = {name: value for name, value in vars(self).items() if name in same}
        return TrainConfig(**common, batch_size=batch_size, lr=lr, optimizer=optimizer)


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Draw a page about a training from what it left in its folder, or compare several.

    Nothing is trained. The page is one file, which needs no network to be looked at.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders with the results of `python -m ddp_gd.train`."""

    out: str | None = None
    """The page, a new .html file. Default: report.html in the folder of the one run, which is
    drawn anew, or for several runs a new comparison.html here."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("Name at least one RUN: a folder that ddp_gd.train wrote.")
        if self.out is not None and not self.out.lower().endswith(".html"):
            raise ConfigError(f"--out {self.out} must end in .html.")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
