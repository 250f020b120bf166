"""Every test starts with an empty Dynamo cache; the larger part of the suite runs on request."""

import os

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: only with TPU_LOWERING_MODELS=all, which `make test-models` sets")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("TPU_LOWERING_MODELS") != "all":
        large = [item for item in items if item.get_closest_marker("large") is not None]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()
