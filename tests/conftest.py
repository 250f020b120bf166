"""Tests run on JAX's CPU backend, whatever else is installed; of long sweeps a part."""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sweep: a third of the cases, unless `make sweep` runs all of them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from tests.subset import left_out

    left = left_out(items, config.args)
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = [item for item in items if item not in left]
