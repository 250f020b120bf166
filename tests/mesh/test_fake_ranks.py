"""Ranks that are not there: what needs them is refused at once, and not waited for."""

from __future__ import annotations

import pytest
import torch
from torch.distributed import _functional_collectives as functional

import tpu_lowering
from tpu_lowering import compat, errors

REFUSED = """[TL726] fake ranks cannot run: a program on the mesh axis_1 4
  at   test_fake_ranks.py:22 in function: return functional.all_reduce(x, "sum", mesh)
  why  expected processes that run it together, got fake ranks
  fix  compile it ahead of time, with aot_compile or explain(..., target=...), or start a process a rank"""


def test_a_program_is_not_run() -> None:
    with tpu_lowering.fake_mesh({"model": 4}) as mesh:

        def function(x: torch.Tensor) -> torch.Tensor:
            return functional.all_reduce(x, "sum", mesh)

        with pytest.raises(compat.BackendCompilerFailed) as caught:
            torch.compile(function, backend="helion_tpu", fullgraph=True)(torch.ones(4))
    assert str(caught.value.inner_exception) == REFUSED


def test_a_part_at_the_own_place_is_refused_ahead_of_time() -> None:
    """On meshes of CPUs torch gathers, and takes the part at the rank's place, which is a number in the graph."""
    from torch.distributed.tensor import DTensor, Shard

    with tpu_lowering.fake_mesh({"model": 4}) as mesh:

        def turned(x: torch.Tensor) -> torch.Tensor:
            part = DTensor.from_local(x, mesh, [Shard(0)], run_check=False)
            return part.redistribute(mesh, [Shard(1)]).to_local()

        with pytest.raises(errors.TpuLoweringError) as caught:
            tpu_lowering.aot_compile(turned, (torch.ones(4, 16),), target="v5e:2x2", mesh=mesh)
    assert "[TL705]" in str(caught.value) and "torch exchanges so on meshes of CPUs" in str(caught.value)
