"""What users import."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import ddp_gd

FUNCTIONS = [
    "evaluate",
    "fingerprint",
    "fit",
    "gather_rows",
    "init",
    "launch",
    "load",
    "local_rank",
    "predict",
    "rank",
    "size",
    "step",
]
CLASSES = ["Checkpoint"]
ERRORS = [
    "AuditError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DdpGdError",
    "LaunchError",
    "MismatchError",
    "ModelError",
    "NumericsError",
    "ReplicaError",
]


def test_the_names_are_fixed() -> None:
    """`__all__` lists the functions and exceptions that are promised, and nothing else."""
    assert sorted(ddp_gd.__all__) == sorted(FUNCTIONS + CLASSES + ERRORS)
    assert set(ddp_gd.__all__) <= set(dir(ddp_gd))


@pytest.mark.parametrize("name", FUNCTIONS + CLASSES + ERRORS)
def test_every_name_resolves_and_says_what_it_is(name: str) -> None:
    """Every exported name is a documented function or class, or an exception of the one tree."""
    value = getattr(ddp_gd, name)
    assert inspect.getdoc(value)
    if name in FUNCTIONS:
        assert inspect.isfunction(value)
        assert value.__name__ == name
    elif name in CLASSES:
        assert inspect.isclass(value)
    else:
        assert issubclass(value, ddp_gd.DdpGdError)


def test_no_module_hides_a_function() -> None:
    """Importing every submodule leaves each exported name what it was."""
    before = {name: getattr(ddp_gd, name) for name in ddp_gd.__all__}
    for module in pkgutil.iter_modules(ddp_gd.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"ddp_gd.{module.name}")
    assert {name: getattr(ddp_gd, name) for name in ddp_gd.__all__} == before


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that is not exported is refused as Python does."""
    with pytest.raises(AttributeError, match="'ddp_gd' has no attribute 'DistributedOptimizer'"):
        _ = ddp_gd.DistributedOptimizer  # type: ignore[attr-defined]
