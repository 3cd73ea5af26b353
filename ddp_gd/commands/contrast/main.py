"""One averaged update beside independent updates: train in every way, print, write and draw."""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddp_gd.comm.base import Communicator
from ddp_gd.commands import result_folder, results
from ddp_gd.commands.config import ContrastConfig, TrainConfig
from ddp_gd.commands.contrast import measures, schemes
from ddp_gd.commands.contrast.plot import draw_contrast
from ddp_gd.commands.contrast.schemes import Examples, Setup, Weights
from ddp_gd.commands.task import Task
from ddp_gd.errors import ConfigError
from ddp_gd.job import runtime
from ddp_gd.reporting.text_table import print_table

_WORKERS = 4  # that a lone process stands for
# One split for all seeds: what differs between them is the initial weights and the order of rows.
_SPLIT_SEED = 0


@np.errstate(over="ignore", invalid="ignore")  # a training that diverges is a result, too
def run(config: ContrastConfig) -> None:
    """Train in every way as `config` says; rank 0 prints, and writes the results at the end.

    Raises:
        DdpGdError: something can't be used; nothing has been written.
    """
    runtime.init(backend=config.backend)
    communicator = runtime.communicator()
    leader = communicator.rank == 0
    folder = result_folder.choose(config.out) if leader else Path()
    workers = _workers(config, communicator)
    training, validation = _data(communicator)
    setup = Setup(training, config.batch_size, config.epochs, config.lr, workers)
    weights = Weights(setup.model(0))
    if leader:
        _announce(config, setup, len(validation.x), communicator)
    seeds, of_a = _train(config, setup, validation, weights, communicator)
    if not leader:
        return
    record = measures.finite(
        _about(config, setup, validation, communicator)
        | {
            "model": f"mlp {'-'.join(map(str, setup.hidden))}, {of_a.shape[1]:,} weights",
            "schemes": {
                scheme.name: measures.summary(scheme, [seed[scheme.name] for seed in seeds])
                for scheme in measures.all_schemes(setup, config.every)
            },
            "keras_in_one_process": seeds[0]["keras_in_one_process"],
            "gradient_noise": measures.of_noise(
                weights, {"initial weights": of_a[0], "after training (a)": of_a[-1]}, training
            ),
        }
    )
    _print_record(record)
    with result_folder.explained(folder):
        folder = result_folder.make(folder)
        (folder / "contrast.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        draw_contrast(record, folder / "contrast.png")
    print(f"results {folder}/: contrast.json, contrast.png", flush=True)


def _train(
    config: ContrastConfig,
    setup: Setup,
    validation: Examples,
    weights: Weights,
    communicator: Communicator,
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Train with every seed in every way.

    Returns:
        On rank 0, what was measured of each seed's trainings, by their names; and on every worker
        the weights of (a) with the first seed, shape (points, weights).
    """
    seeds: list[dict[str, Any]] = []
    of_a = np.empty(0)
    for seed in range(config.seeds):
        began = time.perf_counter()
        trained = schemes.train_all(setup, seed, weights, communicator, config.every)
        if seed == 0:
            of_a = trained["averaged"].weights[0]
        if communicator.rank > 0:
            continue
        if seed == 0:
            trained["keras_in_one_process"] = schemes.keras_in_one_process(setup, weights)
        seeds.append(
            {
                name: measures.of_training(
                    trajectory, trained["averaged"], setup, weights, validation
                )
                for name, trajectory in trained.items()
            }
        )
        took = time.perf_counter() - began
        left = (config.seeds - 1 - seed) * took
        print(f"seed {seed}: {took:.1f} s" + f"; about {left:.0f} s left" * (left > 0), flush=True)
    return seeds, of_a


def _about(
    config: ContrastConfig, setup: Setup, validation: Examples, communicator: Communicator
) -> dict[str, Any]:
    """Say what all trainings have in common, for contrast.json."""
    rows = len(setup.training.x)
    return {
        "command": shlex.join(["python", "-m", "ddp_gd.contrast", *sys.argv[1:]]),
        "config": dataclasses.asdict(config),
        "versions": results.versions(),
        "backend": communicator.name,
        "workers": setup.workers,
        "simulated": communicator.size == 1,
        "rows": {"training": rows, "validation": len(validation.x)},
        "loss": "mean squared error of the normalised targets",
        "gradient_evaluations": rows * config.epochs,
        "distances": measures.DISTANCES,
    }


def _workers(config: ContrastConfig, communicator: Communicator) -> int:
    workers = communicator.size if communicator.size > 1 else config.workers or _WORKERS
    if config.workers not in (None, workers):
        raise ConfigError(
            f"--workers is {config.workers}, but this job has {workers}. Leave it out: it is for "
            "a process that is alone."
        )
    if config.batch_size < workers:
        raise ConfigError(
            f"--batch-size is {config.batch_size}; it must be at least {workers}, a row for each "
            "worker."
        )
    return workers


def _data(communicator: Communicator) -> tuple[Examples, Examples]:
    """The rows to train on and to validate with, normalised by the former."""
    data = Task(TrainConfig(seed=_SPLIT_SEED), communicator).data
    parts = [data["training"], data["validation"]]
    training, validation = (
        Examples(*(array.take(np.arange(len(array))) for array in (x, y))) for x, y, _ in parts
    )
    return training, validation


def _announce(
    config: ContrastConfig, setup: Setup, validation_rows: int, communicator: Communicator
) -> None:
    """Print what all of the trainings have in common."""
    rows, seeds = len(setup.training.x), config.seeds
    how = f"{communicator.name}; each makes its own updates of (b) and (c)"
    if communicator.size == 1:
        how = "simulated one after the other in this process: the same mathematics"
    lines = {
        "data": f"diabetes: {rows} rows to train on, {validation_rows} to validate; normalised",
        "for all": f"mlp, SGD learning rate {config.lr:g}, {config.epochs} epochs = "
        f"{rows * config.epochs:,} gradient evaluations (rows)",
        "batches": f"global mini-batches of {config.batch_size} rows, {setup.steps} in all",
        "workers": f"{setup.workers} ({how})",
        "seeds": f"{seeds}: 0{f' to {seeds - 1}' if seeds > 1 else ''}",
    }
    for name, text in lines.items():
        print(f"{name:<9}{text}", flush=True)


def _print_record(record: Mapping[str, Any]) -> None:
    table = [
        [
            scheme["title"] + (f": {scheme['models']} models" if scheme["models"] > 1 else ""),
            _updates(scheme["updates"]),
            f"{scheme['rows']:g}",
            _loss(scheme["training_loss"]),
            _loss(scheme["validation_loss"]),
            _percent(scheme["workers_apart_at_most"]),
            _percent(scheme["distance_to_a"]),
        ]
        for scheme in record["schemes"].values()
    ]
    print()
    print_table(
        ["", "updates", "rows", "training loss", "validation loss", "apart", "from (a)"], table
    )
    furthest = np.nanmax(np.array(record["keras_in_one_process"]["distance_to_a"], float))
    print(
        f"""
rows: of one update. Losses: mean +- standard deviation over seeds, and over the models of (b).
apart: RMS distance of the workers' weights from their mean, relative to its norm, largest of all
steps. from (a): the same from the weights of (a), at the end.
(a) is one curve with any number of workers: keras.Model.train_on_batch in one process, on whole
mini-batches, is never further from it than {furthest:.1g} of its norm.
(b) is what Keras 3 with Horovod's DistributedOptimizer trains: it averages nothing, and says so
nowhere.

Gradient noise: distance of a mini-batch's gradient from that of all rows, relative to the latter,
RMS over {record["gradient_noise"]["draws"]} random mini-batches, at the initial weights"""
    )
    noise = record["gradient_noise"]
    measured = {"measured": "measured", "exact": "exact", "1/sqrt(B)": "one_over_sqrt_b"}
    of_start = noise["at"]["initial weights"]
    print_table(
        ["batch size", *map(str, noise["batch_size"])],
        [[title, *map(_number, of_start[name])] for title, name in measured.items()],
    )
    print()


def _updates(updates: list[int]) -> str:
    least, most = f"{min(updates):,}", f"{max(updates):,}"
    each = most if least == most else f"{least} to {most}"
    return each if len(updates) == 1 else f"{len(updates)} x {each}"


def _loss(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        values = np.array(spread["values"], float)
        return f"{np.isnan(values).sum()} of {values.size} diverged"
    std = "" if spread["std"] is None else f" +- {_number(spread['std'])}"
    return f"{_number(spread['mean'])}{std}"


def _percent(spread: Mapping[str, Any] | None) -> str:
    if spread is None or spread["mean"] is None:
        return "-"
    return f"{_number(100 * spread['mean'], 1)} %"


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if value < 1000 else f"{value:.2g}"
