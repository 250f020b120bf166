"""Loops inside the steps of a grid as a dimension of the grid: the same values, bit for bit, in every way to run them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import helion
import helion.language as hl
import numpy as np
import pytest
import torch
from torch import fx

import tpu_lowering
from bench.kernels import KERNELS, in_dtype
from tpu_lowering import backend
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir import arrays
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.kernels import Execution, Kernel
from tpu_lowering.ir.programs import Program
from tpu_lowering.kernels.launch import Launch

CASES = {case.name: case for case in KERNELS}


class Kernels:
    """An observer that keeps the kernels of a program."""

    def __init__(self) -> None:
        self.found: list[Kernel] = []

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None: ...

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None: ...

    def compiled(self, program: Program, source: Source) -> None:
        self.found += source.kernels.values()


def launch_of(model: Callable[..., object], *inputs: torch.Tensor) -> Launch:
    """The launch of a model with one Helion kernel."""
    kernels = Kernels()
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = functools.partial(backend.helion_tpu, observers=(kernels,))
        torch.compile(model, backend=compiled, fullgraph=True)(*inputs)
    (launch,) = kernels.found
    assert isinstance(launch, Launch)
    return launch


def values(launch: Launch, inputs: Mapping[str, torch.Tensor], how: Execution) -> list[np.ndarray]:
    """The results of a launch with fresh outputs, in memory that holds NaN."""
    operands = [None if slot.result is not None else arrays.to_jax(inputs[slot.name]) for slot in launch.operands]
    return [np.asarray(result) for result in launch.form(how)(*operands)]


def pipelined(fn: Callable[..., None], *block_sizes: int) -> helion.Kernel:
    config = helion.Config(block_sizes=list(block_sizes), pallas_loop_type="emit_pipeline")
    return helion.kernel(fn, config=config, static_shapes=True, backend="pallas")


def product_into(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    """What is loaded before the loop is used in it and after it."""
    m, k = x.size()
    for rows in hl.tile(m):
        scale = y[rows, 0]
        total = hl.zeros([rows], dtype=torch.float32)
        for inner in hl.tile(k):
            total = total + (x[rows, inner] * scale[:, None]).sum(-1)
        out[rows] = total - scale


def dear_into(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    """An exponential before the loop would run in every step of it."""
    m, k = x.size()
    for rows in hl.tile(m):
        scale = torch.exp(y[rows, 0])
        total = hl.zeros([rows], dtype=torch.float32)
        for inner in hl.tile(k):
            total = total + (x[rows, inner] * scale[:, None]).sum(-1)
        out[rows] = total


def twice_into(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    """Two loops."""
    m, k = x.size()
    for rows in hl.tile(m):
        total = hl.zeros([rows], dtype=torch.float32)
        for inner in hl.tile(k):
            total = total + x[rows, inner].sum(-1)
        for inner in hl.tile(k):
            total = total + x[rows, inner].amax(-1)
        out[rows] = total


product, dear, twice = pipelined(product_into, 8, 128), pipelined(dear_into, 8, 128), pipelined(twice_into, 8, 128, 128)


def model_of(kernel: helion.Kernel) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = torch.empty(x.shape[0])
        kernel(x, y, out)
        return out

    return model


WAYS: tuple[Execution, ...] = ("vectorized", "interpret", "tpu_interpret")


@pytest.mark.sweep
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["bmm", "attention"])
def test_equals_the_launch_as_it_is(name: str, dtype: torch.dtype, how: Execution) -> None:
    inputs = in_dtype(CASES[name].example(True), dtype)
    launch = launch_of(CASES[name].model, *inputs)
    flat = launch.flattened
    assert flat is not None
    assert (flat.operands, flat.results, flat.access) == (launch.operands, launch.results, launch.access)
    given = dict(zip(["q", "k", "v"] if name == "attention" else ["a", "b"], inputs, strict=True))
    given = {key: value.flatten(0, -3) for key, value in given.items()}
    given["scale"] = torch.tensor([inputs[0].shape[-1] ** -0.5])
    for old, new in zip(values(launch, given, how), values(flat, given, how), strict=True):
        assert old.tobytes() == new.tobytes()
        assert not np.isnan(new.astype(np.float32)).any()


@pytest.mark.parametrize("how", WAYS)
def test_what_is_loaded_before_the_loop_is_there_in_it_and_after_it(how: Execution) -> None:
    inputs = torch.randn(32, 512), torch.randn(32, 128)
    launch = launch_of(model_of(product), *inputs)
    assert launch.flattened is not None
    given = dict(zip(["x", "y"], inputs, strict=True))
    (old,), (new,) = values(launch, given, how), values(launch.flattened, given, how)
    assert old.tobytes() == new.tobytes()


@pytest.mark.parametrize("kernel", [dear, twice], ids=["dear", "twice"])
def test_a_loop_that_stays_in_each_step(kernel: helion.Kernel) -> None:
    assert launch_of(model_of(kernel), torch.randn(32, 512), torch.randn(32, 128)).flattened is None


def test_a_kernel_without_a_loop_has_one_form() -> None:
    assert launch_of(CASES["add"].model, *CASES["add"].example(True)).flattened is None


def test_a_program_for_a_tpu_takes_the_flat_form() -> None:
    inputs = in_dtype(CASES["bmm"].example(True), torch.float32)
    program = tpu_lowering.aot_compile(CASES["bmm"].model, inputs, target="tpu7x")
    assert program.hbm_bytes == sum(value.nbytes for value in inputs) + 2 * 512 * 512 * 4
