"""The seed's claims at a small size, from programs that libtpu compiles here; and figures of direct programs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from bench.blocks import block_bytes
from bench.kernels import direct
from bench.tasks import run_exp
from tests.bench.made_up import MIB

SHAPE = (1024, 1024)  # 4 MiB


def test_with_passes_the_kernel_is_all_there_is() -> None:
    after = run_exp("after", SHAPE, "tpu7x")
    assert after["opcodes"] == ["custom-call:tpu_custom_call"]
    assert (after["programs"], after["device_operations"]) == (1, 1)
    assert (after["hbm_bytes"], after["hbm_bytes_read"], after["hbm_bytes_written"]) == (8 * MIB, 4 * MIB, 4 * MIB)
    assert after["kernels_by_operands"] == 0, "expected the DMA schedule to say so, got operands"
    assert after["peak_bytes"] == 8 * MIB


def test_without_passes_a_fill_and_a_fetch_are_paid_for() -> None:
    before = run_exp("before", SHAPE, "tpu7x")
    assert before["opcodes"] == ["broadcast", "custom-call:tpu_custom_call"]
    assert before["programs"] == 2
    assert before["hbm_bytes"] == pytest.approx(16 * MIB, abs=64)  # and the scalar that is filled in


def test_direct_kernel_moves_what_its_blocks_say() -> None:
    by_hand = run_exp("pallas", SHAPE, "tpu7x")
    spec = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    assert by_hand["hbm_bytes"] == block_bytes(functools.partial(direct.pointwise, direct.exp_body), [spec])


def test_block_bytes_count_repeated_fetches() -> None:
    # [2, 1024, 512] by [2, 512, 1024] in blocks of 512: every block of either operand is fetched twice.
    a, b = jax.ShapeDtypeStruct((2, 1024, 512), jnp.float32), jax.ShapeDtypeStruct((2, 512, 1024), jnp.float32)
    assert block_bytes(direct.bmm, [a, b]) == (4 + 8 + 8) * MIB
    with pytest.raises(ValueError, match="got 0"):
        block_bytes(jnp.exp, [a])
