"""Bytes of loops and scatters, against programs whose bytes are known."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from jax import lax

import tpu_lowering
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import chips
from tpu_lowering.runtime.aot import compiler, hlo
from tpu_lowering.runtime.aot.entry_operation import EntryOperation
from tpu_lowering.runtime.aot.traffic import Traffic, traffic_by_operands

pytest.importorskip("libtpu")

MIB = 2**20
ROWS, WIDTH = 8192, 4096  # 128 MiB, which stays in HBM


def spec(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def moved(fn: Callable[..., Any], *specs: jax.ShapeDtypeStruct, donate: tuple[int, ...] = ()) -> Any:
    """Operations of a JAX function on a tpu7x that move more than a MiB, small transfers left out."""
    chip = chips.find("tpu7x")
    artifact = bytes(jax.export.export(jax.jit(fn), platforms=["tpu"])(*specs).serialize())
    compiled = compiler.compile_artifact(artifact, chip, donate, Source("", "", {}))
    program = tpu_lowering.TpuProgram.of("counted", chip, compiled, artifact)
    return program, [one for one in program.entry_operations if one.hbm_bytes_read + one.hbm_bytes_written > MIB]


def figures(operation: EntryOperation) -> tuple[str, float, float, int | None]:
    read, written = operation.hbm_bytes_read / MIB, operation.hbm_bytes_written / MIB
    return operation.bytes_source, round(read, 1), round(written, 1), operation.times


def loops(x: jax.Array, n: jax.Array) -> Any:
    counted = lax.fori_loop(0, 10, lambda i, c: jnp.sin(c) * i, x)
    unknown = lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, jnp.cos(s[1])), (0, counted))
    return unknown[1]


def test_a_loop_counts_its_body_as_often_as_it_runs(tmp_path: pathlib.Path) -> None:
    program, operations = moved(loops, spec(ROWS, WIDTH), spec(dtype=jnp.int32))
    counted, unknown = (one for one in operations if one.opcode == "while")
    assert figures(counted) == ("body", 1280.0, 1280.0, 10)
    assert figures(unknown) == ("body", 128.0, 128.0, None)
    assert program.unknown_loops == (unknown.name,)
    program.save(tmp_path / "loops.tpu")
    assert tpu_lowering.load(tmp_path / "loops.tpu").unknown_loops == program.unknown_loops


def test_a_scan_writes_a_slice_each_time() -> None:
    def scanned(x: jax.Array) -> Any:
        return lax.scan(lambda c, _: (jnp.sin(c), c), x, None, length=6)

    _, operations = moved(scanned, spec(ROWS, WIDTH))
    (loop,) = (one for one in operations if one.opcode == "while")
    # The sine reads and writes once. What is stacked is read and written once, or twice with a copy of it.
    source, read, written, times = figures(loop)
    assert (source, times, read) == ("body", 6, written)
    assert read in (6 * 2 * 128.0, 6 * 3 * 128.0)


TABLE, TAKEN = (100_000, 1024), 512  # 390.6 MiB, and rows of 2 MiB


def test_a_scatter_counts_the_rows_that_it_adds_to() -> None:
    def added(table: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
        return table.at[rows].add(values)

    specs = spec(*TABLE), spec(TAKEN, dtype=jnp.int32), spec(TAKEN, TABLE[1])
    program, operations = moved(added, *specs, donate=(0,))
    scatter = operations[-1]
    assert (scatter.opcode, scatter.hbm_bytes_written) == ("fusion", 2 * MIB)
    assert 2 * MIB <= scatter.hbm_bytes_read <= 4 * MIB + 4096  # the rows, and the values unless they are in VMEM
    assert program.hbm_bytes <= 6 * MIB + 16384


def test_the_gradient_of_an_embedding_is_its_table_and_rows() -> None:
    table, rows = torch.empty(TABLE, requires_grad=True), torch.empty(TAKEN, dtype=torch.int64)
    step = tpu_lowering.aot_compile(F.embedding, (rows, table), target="tpu7x", backward=True)
    assert table.nbytes <= step.backward.hbm_bytes_written <= table.nbytes + 5 * MIB
    assert step.backward.hbm_bytes_read <= 8 * MIB
    assert step.forward.hbm_bytes <= 5 * MIB


SET = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[4096,1024]{1,0:T(8,128)})->f32[4096,1024]{1,0:T(8,128)}}

%replace (old: f32[], new: f32[]) -> f32[] {
  %old = f32[]{:T(128)} parameter(0)
  ROOT %new = f32[]{:T(128)} parameter(1)
}

%fused (param_0: f32[4096,1024], param_1: s32[8,1], param_2: f32[8,1024]) -> f32[4096,1024] {
  %param_0 = f32[4096,1024]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[8,1]{1,0:T(8,128)} parameter(1)
  %param_2 = f32[8,1024]{1,0:T(8,128)} parameter(2)
  ROOT %scatter = f32[4096,1024]{1,0:T(8,128)} scatter(PARAM, %param_1, %param_2), update_window_dims={1}, \
to_apply=%replace
}

ENTRY %main (table: f32[4096,1024], rows: s32[8,1], values: f32[8,1024]) -> f32[4096,1024] {
  %table = f32[4096,1024]{1,0:T(8,128)} parameter(0)
  %rows = s32[8,1]{1,0:T(8,128)S(1)} parameter(1)
  %values = f32[8,1024]{1,0:T(8,128)} parameter(2)
  ROOT %set = f32[4096,1024]{1,0:T(8,128)} fusion(%table, %rows, %values), kind=kCustom, calls=%fused
}
"""


def test_a_scatter_that_replaces_rows_does_not_read_them() -> None:
    rows, table = 8 * 1024 * 4, 4096 * 1024 * 4
    module = hlo.Module.of(SET.replace("PARAM", "%param_0"))
    assert traffic_by_operands(module) == {"set": Traffic(rows, rows)}
    # A table that the fusion makes anew is written whole.
    made = SET.replace("PARAM", "%negate").replace(
        "  ROOT %scatter", "  %negate = f32[4096,1024]{1,0:T(8,128)} negate(%param_0)\n  ROOT %scatter"
    )
    assert traffic_by_operands(hlo.Module.of(made)) == {"set": Traffic(table + rows, table)}


def test_what_a_kernel_in_a_loop_moves_is_taken_from_its_schedule() -> None:
    text = """\
HloModule jit_f, is_scheduled=true

%body (state: (s32[], f32[64,128])) -> (s32[], f32[64,128]) {
  %state = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %one = s32[]{:T(128)S(6)} constant(1)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0
  %x = f32[64,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  %kernel.1 = f32[64,128]{1,0:T(8,128)} custom-call(%x), custom_call_target="tpu_custom_call"
  ROOT %made = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%next, %kernel.1)
}

%condition (state.1: (s32[], f32[64,128])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) parameter(0)
  %end = s32[]{:T(128)} constant(4)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %end), direction=LT
}

ENTRY %main (x.1: f32[64,128]) -> f32[64,128] {
  %x.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) tuple(%zero, %x.1)
  %while.1 = (s32[]{:T(128)}, f32[64,128]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[64,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""
    module, size = hlo.Module.of(text), 64 * 128 * 4
    assert traffic_by_operands(module) == {"while.1": Traffic(4 * size, 4 * size)}
    scheduled = {"kernel.1": Traffic(3 * size, size)}
    assert traffic_by_operands(module, scheduled) == {"while.1": Traffic(12 * size, 4 * size)}
    less = {"kernel.1": Traffic(1, 1)}
    assert traffic_by_operands(module, less) == {"while.1": Traffic(4 * size, 4 * size)}
