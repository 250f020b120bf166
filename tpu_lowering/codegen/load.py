"""Generated source to a callable, and to files that run on their own."""

from __future__ import annotations

import linecache
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import torch

from tpu_lowering import compat
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.kernels import Execution, Kernel
from tpu_lowering.ir.programs import Program
from tpu_lowering.ir.types import TensorType
from tpu_lowering.session import Cache

_lines: Cache[str, None] = Cache(
    "codegen.load",
    256,
    "lines of generated source for tracebacks, as linecache has them",
    lambda filename: linecache.cache.pop(filename, None),
)


def load(program: Program, source: Source, how: Execution) -> Callable[..., tuple[jax.Array, ...]]:
    """The function that a program's source defines, over JAX arrays; not jitted."""
    kernels = {name: k.form(how) for name, k in source.kernels.items()}
    return define(program.name, source.text, kernel=kernels.__getitem__)[program.name]


def define(name: str, text: str, **known: Any) -> dict[str, Any]:
    """What a generated module defines; ``known`` are further names that it may use.

    The text is kept for tracebacks, under a file name in angle brackets.
    """
    filename = f"<tpu_lowering {name}>"
    _lines.put(filename, None)
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {**known, "__name__": name}
    exec(compile(text, filename, "exec"), namespace)
    return namespace


RUNNER = """

if __name__ == "__main__":
    import pathlib

    from tpu_lowering.codegen.load import run_saved

    print(run_saved(pathlib.Path(__file__), {name}))
"""

LOADER = """
import pathlib

from tpu_lowering.codegen.load import saved_kernels

kernel = saved_kernels(pathlib.Path(__file__))
"""


def save(folder: pathlib.Path, program: Program, source: Source) -> pathlib.Path:
    """Writes a program as a Python file that runs on its own, each kernel exported beside it.

    Returns:
        The path of the Python file; running it calls the program on ones and prints the result types.
    """
    path = folder / f"{program.name}.py"
    path.write_text(source.imports + LOADER + source.definitions + RUNNER.format(name=program.name))
    with compat.enable_x64(True):
        for name, kernel in source.kernels.items():
            (folder / f"{program.name}.{name}.jax_export").write_bytes(_export(kernel))
        specs = input_specs(program)
    (folder / f"{program.name}.inputs").write_text("\n".join(f"{s.dtype} {list(s.shape)}" for s in specs) + "\n")
    return path


def input_values(program: Program) -> list[torch.Tensor]:
    """What a program takes: inputs, fake, then constants."""
    return [node.meta["val"] for node in program.input_nodes()] + list(program.constants().values())


def input_specs(
    program: Program, shardings: Sequence[jax.sharding.Sharding] | None = None
) -> list[jax.ShapeDtypeStruct]:
    """What a program takes, as JAX lowers for it; ``shardings`` say how each of it lies."""
    types = [TensorType.of(value) for value in input_values(program)]
    lie = shardings or [None] * len(types)
    return [jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=s) for t, s in zip(types, lie, strict=True)]


def _export(kernel: Kernel) -> bytes:
    specs = [jax.ShapeDtypeStruct(operand.type.shape, operand.type.dtype) for operand in kernel.operands]
    return bytes(jax.export.export(kernel.form("vectorized"), platforms=["cpu"])(*specs).serialize())


def saved_kernels(path: pathlib.Path) -> Callable[[str], Callable[..., Any]]:
    """The kernels of a saved program, by name."""

    def kernel(name: str) -> Callable[..., Any]:
        exported = jax.export.deserialize(bytearray(path.with_name(f"{path.stem}.{name}.jax_export").read_bytes()))

        def call(*operands: jax.Array | None) -> Any:
            given = [
                compat.empty(aval.shape, aval.dtype) if operand is None else operand
                for operand, aval in zip(operands, exported.in_avals, strict=True)
            ]
            return exported.call(*given)

        return call

    return kernel


def run_saved(path: pathlib.Path, function: Callable[..., Any]) -> list[str]:
    """Calls a saved program on ones; returns the types of its results."""
    import ast

    with compat.enable_x64(True):
        arguments: list[jax.Array] = []
        for line in path.with_suffix(".inputs").read_text().splitlines():
            dtype, _, shape = line.partition(" ")
            arguments.append(jax.numpy.ones(ast.literal_eval(shape), dtype))
        return [str(jax.typeof(result)) for result in jax.jit(function)(*arguments)]
