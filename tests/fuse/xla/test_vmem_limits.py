"""What kernels ask for of VMEM, and that XLA keeps values around them in the rest."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import tpu_lowering
from tpu_lowering.fuse.xla.vmem_limits import LEAST, asked, kernel_bytes
from tpu_lowering.ir import chips

MIB = 1 << 20


@given(st.integers(0, 1 << 30), st.sampled_from(["v5e", "v6e", "tpu7x"]))
def test_a_kernel_asks_for_more_than_it_holds_and_no_more_than_there_is(held: int, name: str) -> None:
    chip = chips.find(name)
    most = kernel_bytes(chip)
    assert min(held, most) <= (asked(held, chip) or LEAST) <= most < chip.vmem_bytes


def test_a_small_kernel_asks_for_nothing() -> None:
    v5e = chips.find("v5e")
    assert asked(0, v5e) is None and asked(10 * MIB, v5e) is None
    assert [asked(held * MIB, v5e) for held in (11, 20, 100)] == [33 * MIB // 2, 30 * MIB, 96 * MIB]


def attention(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    *projections, out = weights
    query, key, value = ((x @ weight).unflatten(-1, (-1, 64)).transpose(1, 2) for weight in projections)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2) @ out


def test_what_is_computed_around_a_kernel_stays_in_vmem() -> None:
    pytest.importorskip("libtpu")
    x = torch.empty(8, 1024, 1024, dtype=torch.bfloat16)
    weights = [torch.empty(1024, 1024, dtype=torch.bfloat16) for _ in range(4)]
    program = tpu_lowering.aot_compile(attention, (x, *weights), target="v5e")
    assert len(program.vmem_bytes) == 1
    least = sum(tensor.numel() * 2 for tensor in (x, x, *weights))
    assert program.hbm_bytes < 1.1 * least
