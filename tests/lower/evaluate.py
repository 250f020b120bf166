"""Captures a function as an ATen graph and evaluates it through the lowering table, for the tests beside.

``capture`` traces with our decompositions on fake tensors, functionalised; ``Evaluator`` is an
``fx.Interpreter`` whose values are JAX arrays, and which holds each rule to the type it was promised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import torch
import torch.utils._pytree as pytree
from functorch.compile import aot_module, make_boxed_func
from torch.fx.experimental.proxy_tensor import make_fx

import tpu_lowering.lower.aten  # noqa: F401  (enters the rows)
from tpu_lowering import compat
from tpu_lowering.ir.types import TensorType, element_type
from tpu_lowering.lower.table import TABLE
from tpu_lowering.normalise.decompositions import decompositions

DECOMPOSITIONS = decompositions()


# These programs run once, so the time to compile them is the time the tests take.
QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class NoRow(LookupError):
    """An operator of the graph has no row in the table."""


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """A tensor's elements as a JAX array of the same type; x64 mode must be on."""
    element = element_type(tensor.dtype)
    assert element is not None, f"JAX has no {tensor.dtype}"
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype == torch.bool:
        return jax.numpy.asarray(dense.numpy())
    raw = dense.reshape(-1).view(torch.uint8).numpy()
    return jax.numpy.asarray(raw.view(element.numpy).reshape(tensor.shape))


def to_torch(array: jax.Array) -> torch.Tensor:
    """A JAX array's elements as a tensor of the same type."""
    element = element_type(array.dtype)
    assert element is not None
    dense = np.array(array, order="C")
    if array.dtype == np.bool_:
        return torch.from_numpy(dense)
    return torch.from_numpy(dense.reshape(-1).view(np.uint8)).view(element.torch).reshape(array.shape)


def types_of(meta: Any) -> Any:
    """The ``out`` of a node: its type, or a tuple of types and Nones."""
    if isinstance(meta, list | tuple):
        return tuple(types_of(item) for item in meta)
    return TensorType.of(meta) if isinstance(meta, torch.Tensor) else None


class Evaluator(torch.fx.Interpreter):
    """Runs a captured graph on JAX arrays, one row of the table for each node."""

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.op != "call_function" or not isinstance(n.target, torch._ops.OpOverload):
            return super().run_node(n)
        row = TABLE.get(n.target)
        if row is None:
            raise NoRow(str(n.target))
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        out = types_of(n.meta.get("val"))
        result = row.rule(*args, **kwargs, out=out)
        check_types(n, result, out)
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A constant of the graph."""
        value = super().get_attr(target, args, kwargs)
        return to_jax(value) if isinstance(value, torch.Tensor) else value


def check_types(node: torch.fx.Node, result: Any, out: Any) -> None:
    """Asserts that a rule's result has exactly the promised type, weak types excluded."""
    if out is None:
        return
    if isinstance(out, tuple):
        assert isinstance(result, tuple), f"{node.target}: expected a tuple, got {type(result)}"
        assert len(result) == len(out), f"{node.target}: expected {len(out)} results, got {len(result)}"
        for item, item_type in zip(result, out, strict=True):
            check_types(node, item, item_type)
        return
    got = TensorType.of(result)
    assert got == out, f"{node.target}: expected {out}, got {got}"
    assert not getattr(result, "weak_type", False), f"{node.target}: the result is weakly typed"


def capture(function: Callable[..., Any], *tensors: torch.Tensor) -> torch.fx.GraphModule:
    """The functional ATen graph of ``function`` on tensors, after our decompositions.

    Decompositions may write in place to tensors of their own, so functionalising comes after them.
    """
    decomposed = _trace(function, tensors)
    return _trace(torch.func.functionalize(decomposed, remove="mutations"), tensors)


def _trace(function: Callable[..., Any], tensors: tuple[torch.Tensor, ...]) -> torch.fx.GraphModule:
    """The ATen graph of ``function`` on fake tensors, without dead nodes."""
    graph = make_fx(function, decomposition_table=DECOMPOSITIONS, tracing_mode="fake")(*tensors)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def evaluator_of(graph: torch.fx.GraphModule) -> Callable[..., Any]:
    """A captured graph as a function of JAX arrays."""

    def program(*arrays: jax.Array) -> Any:
        return Evaluator(graph).run(*arrays)

    return program


def evaluate(graphs: Sequence[torch.fx.GraphModule], inputs: Sequence[Sequence[torch.Tensor]]) -> list[Any]:
    """Results of the graphs on their inputs, all in one XLA program (to compile once)."""

    def program(arrays: list[list[jax.Array]]) -> list[Any]:
        results = [Evaluator(graph).run(*values) for graph, values in zip(graphs, arrays, strict=True)]
        return [list(result) if isinstance(result, list) else result for result in results]

    with compat.enable_x64(True):
        arrays = [[to_jax(tensor) for tensor in tensors] for tensors in inputs]
        results = jax.jit(program, compiler_options=QUICK_TO_COMPILE)(arrays)
        return pytree.tree_map(lambda x: to_torch(x) if isinstance(x, jax.Array) else x, results)


def compile_aot(module: torch.nn.Module) -> Callable[..., Any]:
    """``module`` with forward and backward captured by AOTAutograd and run through the table."""

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        return make_boxed_func(lambda *inputs: evaluate([graph], [inputs])[0])

    return aot_module(module, fw_compiler=compiler, bw_compiler=compiler, decompositions=DECOMPOSITIONS)
