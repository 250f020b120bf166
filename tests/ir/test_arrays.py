"""Results of XLA copied into memory of torch's."""

from __future__ import annotations

import mmap

import jax.numpy as jnp
import pytest
import torch

from tpu_lowering.ir import arrays


@pytest.mark.parametrize("nbytes", [0, 4, arrays.LARGE - 4, arrays.LARGE, 3 * arrays.LARGE + 8])
def test_copies_of_any_size(nbytes: int) -> None:
    """From the limit on in large pages; what lies around the copy stays."""
    count = nbytes // 4
    memory = torch.full((count + 2000,), -1.0)
    part = memory[1000 : 1000 + count]
    arrays.copy_into(part, jnp.arange(count, dtype=jnp.float32), nbytes)
    torch.testing.assert_close(part, torch.arange(count, dtype=torch.float32), rtol=0, atol=0)
    assert (memory[:1000] == -1).all() and (memory[1000 + count :] == -1).all()


def test_advice_keeps_contents() -> None:
    memory = torch.arange(arrays.LARGE, dtype=torch.int32)
    arrays.prefer_large_pages(memory.data_ptr() + 4, memory.nbytes - 4)
    torch.testing.assert_close(memory, torch.arange(arrays.LARGE, dtype=torch.int32), rtol=0, atol=0)


def test_without_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on other systems than Linux."""
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    part = torch.empty(arrays.LARGE // 4)
    arrays.copy_into(part, jnp.ones(arrays.LARGE // 4), arrays.LARGE)
    assert (part == 1).all()
