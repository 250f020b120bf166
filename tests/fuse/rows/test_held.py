"""What a generated kernel is counted to hold of VMEM."""

from __future__ import annotations

import pytest

from tpu_lowering.fuse.rows.held import held_bytes
from tpu_lowering.ir import chips
from tpu_lowering.ir.types import TensorType, bf16, f32

KIB = 1 << 10
SOURCE = """
import jax
from jax.experimental import pallas as pl

def twice_kernel(x_ref, out_ref):
    {body}

def twice_launch(x, *, interpret):
    return pl.pallas_call(
        twice_kernel,
        grid=(4,),
        in_specs=[pl.BlockSpec((8, 128), lambda i: ({moved}, 0){mode})],
        out_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
        out_shape=[jax.ShapeDtypeStruct((32, 128), x.dtype)],
        interpret=interpret,
    )(x)
"""
TWICE = "out_ref[...] = x_ref[...] * 2"
LATER = "x = x_ref[...]; y = x + 1; z = y * 2; out_ref[...] = z * x"
BRANCH = "x = x_ref[...]; out_ref[...] = x + jax.lax.cond(x[0, 0] > 0, lambda: x * 2 + x, lambda: x)"


def held(body: str, type_: TensorType, moved: str = "i", mode: str = "") -> int:
    text = SOURCE.format(body=body, moved=moved, mode=mode)
    return held_bytes("twice", text, (type_,), chips.find("v5e")) // KIB


@pytest.mark.parametrize(
    ("body", "type_", "blocks", "alive"),
    [
        (TWICE, f32[32, 128], 4 * 4, 2 * 4),
        (TWICE, bf16[32, 128], 4 * 2, 2 * 4),  # computed with in float32
        (LATER, f32[32, 128], 4 * 4, 3 * 4),
    ],
)
def test_blocks_lie_there_twice_and_values_while_they_are_alive(
    body: str, type_: TensorType, blocks: int, alive: int
) -> None:
    assert held(body, type_) == blocks + alive


def test_a_block_that_lies_there_once_is_counted_once() -> None:
    assert held(TWICE, f32[32, 128], "0", ", pipeline_mode=pl.Buffered(1)") == 3 * 4 + 2 * 4


def test_values_inside_a_branch_count() -> None:
    assert held(BRANCH, f32[32, 128]) > held("x = x_ref[...]; out_ref[...] = x + x", f32[32, 128])
