"""Every test starts with an empty Dynamo cache, so that compiling is seen."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()
