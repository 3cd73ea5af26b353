from __future__ import annotations

import pytest
import tensorflow as tf

from ddp_gd.errors import ConfigError
from ddp_gd.job import gpus


class Machine:
    """Stands in for TensorFlow's view of a machine with GPUs, and notes what it is told."""

    def __init__(self, count: int, started: bool = False):
        names = [f"/physical_device:GPU:{number}" for number in range(count)]
        self.devices = [tf.config.PhysicalDevice(name, "GPU") for name in names]
        self.started = started
        self.visible: list[int] | None = None
        self.growing: list[int] = []

    def list_physical_devices(self, kind: str) -> list:
        assert kind == "GPU"
        return self.devices

    def set_visible_devices(self, device, kind: str) -> None:
        if self.started:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        self.visible = [self.devices.index(device)]

    def set_memory_growth(self, device, enable: bool) -> None:
        assert enable
        self.growing.append(self.devices.index(device))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Makes one of so many GPUs, which TensorFlow then seems to see."""

    def make(count: int, started: bool = False) -> Machine:
        it = Machine(count, started)
        monkeypatch.setattr(tf.config, "list_physical_devices", it.list_physical_devices)
        monkeypatch.setattr(tf.config, "set_visible_devices", it.set_visible_devices)
        monkeypatch.setattr(tf.config.experimental, "set_memory_growth", it.set_memory_growth)
        return it

    return make


@pytest.mark.parametrize(
    ("count", "local_rank", "local_size", "taken"),
    [
        (0, 0, 1, None),  # CPUs: nothing is touched
        (0, 3, 4, None),
        (1, 0, 1, 0),
        (4, 0, 1, 0),  # one process leaves the others alone
        (4, 2, 4, 2),
        (8, 3, 4, 3),
        (1, 3, 4, 0),  # the launcher shows each worker its own
    ],
)
def test_each_worker_takes_one(machine, count, local_rank, local_size, taken) -> None:
    """A worker sees the GPU of its local rank alone, and its memory grows as needed."""
    seen = machine(count)
    gpus.take_one(local_rank, local_size, bitwise=False)
    assert seen.visible == (None if taken is None else [taken])
    assert seen.growing == ([] if taken is None else [taken])


@pytest.mark.parametrize(
    ("count", "started", "local_size", "bitwise", "says"),
    [
        (2, False, 3, False, "3 workers on a host with 2 GPUs.*Start 2 there"),
        (1, False, 1, True, "sees 1 GPU. Set CUDA_VISIBLE_DEVICES=-1"),
        (2, True, 2, False, "has started on 2 GPUs"),
    ],
)
def test_what_is_refused(machine, count, started, local_size, bitwise, says) -> None:
    """Sharing a GPU, bits on GPUs, and coming too late end in an error, with nothing changed."""
    seen = machine(count, started)
    with pytest.raises(ConfigError, match=says):
        gpus.take_one(0, local_size, bitwise)
    assert seen.visible is None
    assert seen.growing == []


def test_bits_on_cpus_are_not_refused(machine) -> None:
    """Without GPUs bitwise=True goes on."""
    machine(0)
    gpus.take_one(0, 1, bitwise=True)
