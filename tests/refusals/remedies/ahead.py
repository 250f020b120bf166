"""Mistakes with what is compiled ahead of time, and with the functions that report."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import torch
from expecttest import assert_expected_inline as inline
from jax.experimental import pallas as pl

import tpu_lowering
from tests.refusals.remedies import Result, X, compiled, into, mistake, says
from tpu_lowering import TpuStep, aot_compile, explain, kernel_op

ROWS = torch.ones(8, 128)


def double(x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
    return x * scale


@functools.cache
def program_ahead() -> Any:
    return aot_compile(double, (ROWS,))


def is_program(program: Any) -> Result:
    """What a mended call gives: a program that moves bytes."""
    return program.hbm_bytes > 0, True


def reported(report: Any) -> Result:
    """What a mended ``explain`` gives: the report of one program."""
    return str(report).count("One XLA program"), 1


@mistake
def a_chip_that_there_is_not() -> Result:
    inline(
        says(lambda: aot_compile(double, (ROWS,), target="tpu7")),
        """\
[TL107] unknown target: 'tpu7'
  why  expected one of v4, v5e, v5p, v6e, tpu7x, or a topology such as 'v5e:2x4', got 'tpu7'
  fix  write target="tpu7x\"""",
    )
    return is_program(aot_compile(double, (ROWS,), target="tpu7x"))


@mistake
def a_tensor_for_a_tuple() -> Result:
    inline(
        says(lambda: aot_compile(double, ROWS)),
        """\
[TL112] function called with the wrong arguments: args
  why  expected a tuple of the arguments, got a tensor
  fix  aot_compile(model, (x,))""",
    )
    return is_program(aot_compile(double, (ROWS,)))


@mistake
def a_result_for_a_function() -> Result:
    inline(
        says(lambda: explain(double(X), X)),
        """\
[TL112] function called with the wrong arguments: fn
  why  expected a function or module, got Tensor
  fix  explain(model, x)""",
    )  # type: ignore[arg-type]
    return reported(explain(double, X))


@mistake
def an_argument_that_a_function_has_not() -> Result:
    inline(
        says(lambda: explain(double, X, scal=3.0)),
        """\
[TL112] function called with the wrong arguments: arguments of double
  why  expected arguments for double(x: 'torch.Tensor', scale: 'float' = 2.0) -> 'torch.Tensor', got an unexpected keyword argument 'scal'
  fix  pass the function's own arguments""",
    )
    return reported(explain(double, X, scale=3.0))


@mistake
def one_call_for_a_list_of_calls() -> Result:
    inline(
        says(lambda: explain(double, X, calls=X)),
        """\
[TL112] function called with the wrong arguments: calls
  why  expected a list of tuples of arguments, got Tensor
  fix  explain(model, x, calls=[(y,)])""",
    )
    return reported(explain(double, X, calls=[(X,)]))


@mistake
def a_backward_of_what_needs_no_gradient() -> Result:
    inline(
        says(lambda: aot_compile(double, (ROWS,), backward=True)),
        """\
[TL115] no gradient to compile a backward for: double
  why  expected a result computed of an argument, parameter or other tensor that requires a gradient, got none
  fix  call requires_grad_() on what is trained, or compile with backward=False""",
    )
    return is_program(aot_compile(double, (ROWS.clone().requires_grad_(),), backward=True))


@mistake
def a_program_that_is_called() -> Result:
    program = program_ahead()
    inline(
        says(lambda: program(ROWS)),
        """\
[TL104] device has no runtime: TpuProgram for tpu7x
  why  expected something that runs, got a program that was compiled ahead of time, to be read, compared and saved
  fix  run the function: torch.compile(fn, backend="helion_tpu")""",
    )  # type: ignore[operator]
    return compiled(double)(ROWS), double(ROWS)


@mistake
def a_text_for_a_saved_program() -> Result:
    pathlib.Path("program.tpu").write_text("no program")
    inline(
        says(lambda: tpu_lowering.load("program.tpu")),
        """\
[TL109] saved program is damaged or foreign: program.tpu
  why  expected a file saved by TpuProgram.save, got BadZipFile: File is not a zip file
  fix  save the program again with TpuProgram.save(path)""",
    )
    program = program_ahead()
    program.save("program.tpu")
    return tpu_lowering.load("program.tpu").hbm_bytes, program.hbm_bytes


@mistake
def a_folder_that_is_not_there() -> Result:
    program = program_ahead()
    inline(
        says(lambda: program.save("nowhere/program.tpu")),
        """\
[TL112] function called with the wrong arguments: 'nowhere/program.tpu'
  why  expected the name of a file that can be written, got FileNotFoundError: [Errno 2] No such file or directory: 'nowhere/program.tpu'
  fix  program.save('program.tpu')""",
    )
    program.save("program.tpu")
    return tpu_lowering.load("program.tpu").hbm_bytes, program.hbm_bytes


@mistake
def a_step_read_as_a_program() -> Result:
    step = aot_compile(double, (ROWS.clone().requires_grad_(),), backward=True)
    step.save("step.tpu")
    inline(
        says(lambda: tpu_lowering.load("step.tpu")),
        """\
[TL109] saved program is damaged or foreign: step.tpu
  why  expected a program, got a step
  fix  read it with tpu_lowering.TpuStep.load(path)""",
    )
    return TpuStep.load("step.tpu").hbm_bytes, step.hbm_bytes


@mistake
def a_program_that_is_no_single_graph() -> Result:
    def printing(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        print("half way")
        return y + 1

    def silent(x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1

    inline(
        says(lambda: aot_compile(printing, (ROWS,))),
        """\
[TL117] function that is no single graph: Failed to trace builtin operator
  at   FILE:LINE in printing: print("half way")
  why  expected a function that Dynamo captures as one graph, got one that it leaves here: Dynamo does not know how to trace builtin operator `print` with argument types ['str'] (has_kwargs False)
  fix  keep that line out of the function; tpu_lowering.explain(fn, ...) lists all such lines""",
    )
    return is_program(aot_compile(silent, (ROWS,)))


@mistake
def numbers_of_64_bits_in_a_kernel() -> Result:
    def body(x: Any, out: Any) -> None:
        out[...] = x[...] * 2

    def run(x: torch.Tensor, out: torch.Tensor) -> None:
        return pl.pallas_call(body, out_shape=jax.ShapeDtypeStruct(out.shape, out.dtype))(x)

    kernel = kernel_op("remedies::wide", mutates_args=("out",))(run)
    inline(
        says(lambda: aot_compile(into(kernel), (ROWS.double(),))),
        """\
[TL603] dtype is not supported on the chip: argument 'x' of remedies::wide
  at   FILE:LINE in run
  why  expected element types of at most 32 bits on tpu7x, got f64[8, 128]
  fix  convert it before the kernel: x.float() for float64, x.int() for int64""",
    )
    return is_program(aot_compile(lambda x: into(kernel)(x.float()), (ROWS.double(),)))


@mistake
def a_mesh_on_one_device() -> Result:
    with tpu_lowering.fake_mesh({"data": 8}) as mesh:
        inline(
            says(lambda: aot_compile(double, (ROWS,), target="v5e", mesh=mesh)),
            """\
[TL721] mesh on one device: 'v5e'
  why  expected a topology for a mesh of data 8, got one device
  fix  write target="v5e:2x4\"""",
        )
        return is_program(aot_compile(double, (ROWS,), target="v5e:2x4", mesh=mesh))


@mistake
def a_topology_of_another_size() -> Result:
    with tpu_lowering.fake_mesh({"data": 8}) as mesh:
        inline(
            says(lambda: aot_compile(double, (ROWS,), target="v5e:4x4", mesh=mesh)),
            """\
[TL722] topology with another number of devices than the mesh: 'v5e:4x4'
  why  expected a topology of 8 devices, one for each rank, got 16
  fix  name a topology of 8 chips, or make a mesh of 16 ranks""",
        )
        return is_program(aot_compile(double, (ROWS,), target="v5e:2x4", mesh=mesh))


@mistake
def a_mesh_without_names() -> Result:
    def of(sizes: Any) -> int:
        with tpu_lowering.fake_mesh(sizes) as mesh:
            return mesh.size()

    inline(
        says(lambda: of([8])),
        """\
[TL112] function called with the wrong arguments: sizes
  why  expected names of axes and how many ranks stand along each, got [8]
  fix  fake_mesh({"data": 4})""",
    )
    return of({"data": 4}), 4


@mistake
def fake_ranks_that_are_to_run() -> Result:
    with tpu_lowering.fake_mesh({"data": 8}) as mesh:
        inline(
            says(lambda: explain(double, ROWS)),
            """\
[TL726] fake ranks cannot run: explain
  why  expected a target, as fake ranks run nothing, got none
  fix  explain(model, x, target="v5e:4x4", mesh=mesh)""",
        )
        report = explain(double, ROWS, target="v5e:2x4", mesh=mesh)
    return report.chip is not None, True


@mistake
def a_module_for_a_graph() -> Result:
    inline(
        says(lambda: tpu_lowering.passes.apply(torch.nn.ReLU())),
        """\
[TL112] function called with the wrong arguments: graph
  why  expected a torch.fx.GraphModule, or the graph of one, got ReLU
  fix  passes.apply(module)""",
    )  # type: ignore[arg-type]
    module = torch.fx.symbolic_trace(torch.nn.ReLU())
    tpu_lowering.passes.apply(module)
    return module(X), X.relu()
