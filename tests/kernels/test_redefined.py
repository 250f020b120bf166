"""A notebook's cell that is run again: its kernel replaces the first, in eager and in what was compiled."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
import torch

from tests.refusals.remedies import says
from tpu_lowering import kernel_op, register_kernel

X = torch.arange(4.0)
_numbers = itertools.count()

CELL = """
import jax.numpy as jnp
import torch
import tpu_lowering


@tpu_lowering.kernel_op("redefined::{name}"{options})
def {function}({arguments}) -> torch.Tensor:
    return {body}
"""


class Notebook:
    """Cells that share their names, with a kernel of one name."""

    def __init__(self) -> None:
        self.name = f"kernel_{next(_numbers)}"
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.cells = itertools.count()

    def run(
        self, body: str, arguments: str = "x: torch.Tensor", options: str = "", function: str = "kernel"
    ) -> Callable[..., Any]:
        text = CELL.format(name=self.name, body=body, arguments=arguments, options=options, function=function)
        exec(compile(text, f"<cell {next(self.cells)}>", "exec"), self.names)
        return self.names[function]

    def function(self, text: str) -> Callable[..., Any]:
        return eval(text, self.names)


@pytest.fixture
def notebook() -> Notebook:
    torch.compiler.reset()
    return Notebook()


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(function, backend="helion_tpu", fullgraph=True, options=options)


def test_another_body(notebook: Notebook) -> None:
    first = notebook.run("x * 2")
    by_name = compiled(notebook.function("lambda x: kernel(x) + 1"))
    path = f"torch.ops.redefined.{notebook.name}"
    by_path, by_overload = (compiled(notebook.function(f"lambda x: {p}(x) + 1")) for p in (path, f"{path}.default"))
    for function in (by_name, by_path, by_overload):
        assert torch.equal(function(X), X * 2 + 1)
    second = notebook.run("x * 3")
    assert second is not first and torch.equal(second(X), X * 3)
    for function in (by_name, by_path, by_overload):
        assert torch.equal(function(X), X * 3 + 1)


def test_the_same_cell_twice(notebook: Notebook) -> None:
    for _ in range(3):
        notebook.run("x * 2")
        assert torch.equal(compiled(notebook.function("lambda x: kernel(x)"))(X), X * 2)


def test_another_signature(notebook: Notebook) -> None:
    notebook.run("x * 2")
    old = compiled(notebook.function("lambda x: kernel(x)"))
    assert torch.equal(old(X), X * 2)
    kernel = notebook.run("x * n + y", "x: torch.Tensor, y: torch.Tensor, n: int")
    assert torch.equal(kernel(X, X, 4), X * 5)
    assert torch.equal(compiled(notebook.function("lambda x: kernel(x, x, 4)"))(X), X * 5)
    with pytest.raises(Exception, match=r"missing value for argument 'y'|missing a required argument|missing"):
        old(X)


def test_results_of_another_type(notebook: Notebook) -> None:
    notebook.run("x * 2")
    function = compiled(notebook.function("lambda x: kernel(x) + 1"))
    assert torch.equal(function(X), X * 2 + 1)
    notebook.run("jnp.sum(x)")
    assert torch.equal(function(X), X.sum() + 1)


def test_a_written_argument_more(notebook: Notebook) -> None:
    notebook.run("x * 2")
    assert torch.equal(compiled(notebook.function("lambda x: kernel(x)"))(X), X * 2)
    notebook.run("(x + 1, x * 2)", options=", mutates_args=('x',)")
    x = X.clone()
    assert torch.equal(compiled(notebook.function("lambda x: kernel(x) + x"))(x), X * 2 + X + 1)
    assert torch.equal(x, X + 1)


def test_another_backward(notebook: Notebook) -> None:
    def gradient(function: Callable[..., Any]) -> torch.Tensor:
        x = X.clone().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]

    notebook.run("x * 2", options=", backward=lambda ctx, grad: grad * 2")
    function = compiled(notebook.function("lambda x: kernel(x)"))
    assert torch.equal(gradient(function), torch.full_like(X, 2))
    notebook.run("x * 3", options=", backward=lambda ctx, grad: grad * 3")
    assert torch.equal(gradient(function), torch.full_like(X, 3))
    notebook.run("x * 3")
    assert "[TL205]" in says(lambda: gradient(function))


def test_an_operator_that_an_object_kept(notebook: Notebook) -> None:
    """Eager takes the new kernel for it. A graph that was captured with it has the old one's types and gradients."""
    kept = [notebook.run("x * 2")]
    function = compiled(lambda x: kept[0](x) + 1)
    assert torch.equal(function(X), X * 2 + 1)
    notebook.run("x * 3")
    assert torch.equal(kept[0](X), X * 3)
    assert says(lambda: function(X)).startswith("[TL216] kernel changed under a program that cannot be compiled again")
    torch.compiler.reset()  # as the text says
    assert torch.equal(function(X), X * 3 + 1)


def test_programs_in_a_cache(notebook: Notebook, tmp_path: pathlib.Path) -> None:
    notebook.run("x * 2")
    function = compiled(notebook.function("lambda x: kernel(x) + 1"), cache=str(tmp_path))
    for body, by in (("x * 2", 2), ("x * 3", 3), ("x * 2", 2), ("x * 3", 3)):
        notebook.run(body)
        assert torch.equal(function(X), X * by + 1)
        torch.compiler.reset()
        assert torch.equal(function(X), X * by + 1)


def test_a_cell_that_is_refused_leaves_the_first(notebook: Notebook) -> None:
    first = notebook.run("x * 2")
    for wrong in (
        {"arguments": "x"},
        {"options": ", sharding='rows, rows'"},
        {"options": ", mutates_args=('y',)"},
        {"options": ", backward=3"},
        {"function": "other"},
    ):
        with pytest.raises(Exception, match=r"\[TL2\d\d\]|\[TL715\]"):
            notebook.run("x * 3", **wrong)
        assert torch.equal(first(X), X * 2)
    assert torch.equal(notebook.run("x * 3")(X), X * 3)


def test_a_first_cell_that_is_refused_can_be_mended(notebook: Notebook) -> None:
    with pytest.raises(Exception, match=r"\[TL715\]"):
        notebook.run("x * 2", options=", sharding='rows, rows'")
    assert torch.equal(notebook.run("x * 2", options=", sharding='rows -> rows'")(X), X * 2)


def test_another_module(notebook: Notebook) -> None:
    notebook.run("x * 2")
    notebook.names = {"__name__": "another_module"}
    said = says(lambda: notebook.run("x * 3"))
    assert said.splitlines()[0] == f"[TL207] kernel registered twice: redefined::{notebook.name}"
    assert "got that of the kernel at <cell 0>:" in said


@pytest.mark.parametrize("again", [True, False])
def test_an_implementation_that_is_registered_again(again: bool) -> None:
    """By a cell of its own; the operator's cell may be run again, too."""
    name = f"registered_{again}"

    def operator() -> Any:
        @torch.library.custom_op(f"redefined::{name}", mutates_args=())
        def scaled(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        scaled.register_fake(torch.empty_like)
        return scaled

    def cell(body: str) -> None:
        names: dict[str, Any] = {"__name__": "__main__", "jnp": jnp}
        exec(compile(f"def scaled_in_jax(x):\n    return {body}", "<cell>", "exec"), names)
        register_kernel(getattr(torch.ops.redefined, name))(names["scaled_in_jax"])

    scaled = operator()
    torch.compiler.reset()
    function = compiled(lambda x: scaled(x) + 1)
    cell("x * 2")
    assert torch.equal(function(X), X * 2 + 1)
    if again:
        scaled = operator()
    cell("x + x + x")
    assert torch.equal(function(X), X * 3 + 1)


def test_a_reloaded_module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "reloaded_kernels.py"
    file.write_text(
        CELL.format(name="reloaded", function="kernel", arguments="x: torch.Tensor", body="x * 2", options="")
    )
    module = importlib.import_module("reloaded_kernels")
    function = compiled(lambda x: module.kernel(x))
    assert torch.equal(function(X), X * 2)
    file.write_text(file.read_text().replace("x * 2", "x * 30"))
    importlib.reload(module)
    assert torch.equal(function(X), X * 30)


def test_what_a_loop_makes_twice_is_refused() -> None:
    def make(by: int) -> Any:
        @kernel_op("redefined::in_a_loop")
        def scaled(x: torch.Tensor) -> torch.Tensor:
            return x * by

        return scaled

    first = make(2)
    assert says(lambda: make(3)).startswith("[TL207] kernel registered twice: redefined::in_a_loop")
    assert torch.equal(first(X), X * 2)
