"""Mistakes on the command line."""

from __future__ import annotations

import contextlib
import io
import pathlib

from expecttest import assert_expected_inline as inline

from tests.refusals.remedies import Result, mistake, text
from tpu_lowering.__main__ import main

MODEL = """
import torch


def forward(x):
    return x * 2


def example_inputs():
    return torch.ones(16)
"""


def refused(*arguments: str) -> str:
    """What a command prints that is refused."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        assert main(arguments) == 1
    return text(RuntimeError(errors.getvalue().rstrip("\n")))


def printed(*arguments: str) -> str:
    """What a command prints that runs."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(arguments) == 0
    return said.getvalue()


def reported(*arguments: str) -> Result:
    """Whether a report came out."""
    return "One XLA program" in printed("explain", *arguments), True


def write(name: str, contents: str) -> None:
    pathlib.Path(name).write_text(contents)


@mistake
def a_file_that_is_not_there() -> Result:
    write("model.py", MODEL)
    inline(
        refused("explain", "modle.py:forward"),
        """\
[TL106] nothing to explain: 'modle.py:forward'
  why  expected FILE:FUNCTION, with example_inputs() in FILE to give FUNCTION's arguments, got no file 'modle.py'
  fix  write model.py:forward""",
    )
    return reported("model.py:forward")


@mistake
def a_function_that_is_not_there() -> Result:
    write("model.py", MODEL)
    inline(
        refused("explain", "model.py:forwrad"),
        """\
[TL106] nothing to explain: 'model.py:forwrad'
  why  expected FILE:FUNCTION, with example_inputs() in FILE to give FUNCTION's arguments, got no function 'forwrad' in model
  fix  write model.py:forward""",
    )
    return reported("model.py:forward")


@mistake
def no_inputs() -> Result:
    write("model.py", MODEL.partition("def example_inputs")[0])
    inline(
        refused("explain", "model.py:forward"),
        """\
[TL106] nothing to explain: 'model.py:forward'
  why  expected FILE:FUNCTION, with example_inputs() in FILE to give FUNCTION's arguments, got no function 'example_inputs' in model
  fix  write 'def example_inputs(): return (x,)' into model.py, with what forward is called with""",
    )
    write("model.py", MODEL)
    return reported("model.py:forward")


@mistake
def a_file_that_raises() -> Result:
    write("model.py", MODEL.replace("import torch", "import trch as torch"))
    inline(
        refused("explain", "model.py:forward"),
        """\
[TL106] nothing to explain: 'model.py:forward'
  why  expected FILE:FUNCTION, with example_inputs() in FILE to give FUNCTION's arguments, got ModuleNotFoundError when it was run: No module named 'trch'
  fix  mend model.py: 'python model.py' says where it raises""",
    )
    write("model.py", MODEL)
    return reported("model.py:forward")


@mistake
def inputs_that_are_too_many() -> Result:
    write("model.py", MODEL.replace("return torch.ones(16)", "return torch.ones(16), 2"))
    inline(
        refused("explain", "model.py:forward"),
        """\
[TL112] function called with the wrong arguments: arguments of forward
  why  expected arguments for forward(x), got too many positional arguments
  fix  pass the function's own arguments""",
    )
    write("model.py", MODEL)
    return reported("model.py:forward")


@mistake
def a_misspelt_option() -> Result:
    write("model.py", MODEL)
    inline(
        refused("explain", "model.py:forward", "--options", "verfy=True"),
        """\
[TL101] unknown option: 'verfy'
  why  expected one of verify, poison, passes, fallback, cpu_kernels, random, fuse, tune, tune_seconds, dump, cache, cache_bytes, buckets, device, mesh, shardings, got 'verfy'
  fix  did you mean 'verify'? Write options={'verify': ...}""",
    )
    return reported("model.py:forward", "--options", "verify=True")


@mistake
def a_code_that_there_is_not() -> Result:
    inline(
        refused("explain", "TL999"),
        """\
[TL112] function called with the wrong arguments: code
  why  expected a code such as TL205, got 'TL999'
  fix  docs/errors.md lists every code""",
    )
    return printed("explain", "TL205").startswith("# TL205"), True


@mistake
def a_target_that_there_is_not() -> Result:
    inline(
        refused("pipeline", "--target", "tpu7"),
        """\
[TL107] unknown target: 'tpu7'
  why  expected one of v4, v5e, v5p, v6e, tpu7x, or a topology such as 'v5e:2x4', got 'tpu7'
  fix  write target="tpu7x\"""",
    )
    return "fuse" in printed("pipeline", "--target", "tpu7x"), True


@mistake
def a_kernel_that_fails_while_dynamo_captures() -> Result:
    kernel = """
import tpu_lowering, jax.numpy as jnp


@tpu_lowering.kernel_op("remedies_command::branches")
def branches(x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 0 else -x


def forward(x):
    return branches(x) + 1
"""
    write("model.py", MODEL + kernel)
    inline(
        refused("explain", "model.py:forward"),
        """\
[TL206] kernel cannot be traced to JAX: remedies_command::branches
  at   FILE:LINE in branches: return x if x.sum() > 0 else -x
  why  expected a function that JAX can trace, got TracerBoolConversionError: Attempted boolean conversion of traced array with shape bool[].
  fix  mend that line. JAX traces the function, so its arrays have no values: use jax.numpy in place of torch and numpy, and jnp.where or jax.lax.cond in place of 'if'""",
    )
    mended = kernel.replace("x if x.sum() > 0 else -x", "jnp.where(x.sum() > 0, x, -x)")
    write("model.py", MODEL + mended.replace("::branches", "::selects"))
    return reported("model.py:forward")
