"""Every test starts with Dynamo as new, so that none recompiles what another compiled."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Generator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
