"""Errors name what they are about by its own name: functions behind partials, methods, objects; no address is said."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import tpu_lowering
from tpu_lowering import errors, offenders
from tpu_lowering.capture.refusals import refusal_in
from tpu_lowering.ir import chips
from tpu_lowering.options import Options

X = torch.ones(4)


def scaled(x: torch.Tensor, by: int = 2) -> torch.Tensor:
    return x * by


def helper(x: Any) -> Any:
    raise ValueError("no such thing")


class Scale:
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return helper(x)

    def method(self, x: torch.Tensor) -> torch.Tensor:
        return helper(x)


@functools.wraps(scaled)
def wrapped(*args: Any) -> Any:
    return scaled(*args)


LINE = scaled.__code__.co_firstlineno
CALLABLES: dict[str, tuple[Any, str, str, Any]] = {
    # a value: its name, how an error shows it, the function behind it
    "a function": (scaled, "scaled", "the function scaled", scaled),
    "a partial": (functools.partial(scaled, by=3), "scaled", "a partial of scaled", scaled),
    "a partial of one": (functools.partial(functools.partial(scaled), by=3), "scaled", "a partial of scaled", scaled),
    "a wrapped one": (wrapped, "scaled", "the function scaled", scaled),
    "a jitted one": (jax.jit(scaled), "scaled", "the function scaled", scaled),
    "an object": (Scale(), "Scale", "an object of class Scale", Scale.__call__),
    "a partial of an object": (functools.partial(Scale()), "Scale", "a partial of Scale", Scale.__call__),
    "a method": (Scale().method, "Scale.method", "the function Scale.method", Scale.method),
    "a class": (Scale, "Scale", "the class Scale", Scale),
    "a built-in": (len, "len", "the function len", len),
    "a module": (torch.nn.ReLU(), "ReLU", "ReLU()", torch.nn.ReLU.forward),
}  # fmt: skip


@pytest.mark.parametrize("what", CALLABLES)
def test_names(what: str) -> None:
    value, name, shown, function = CALLABLES[what]
    assert (offenders.name_of(value), offenders.shown(value)) == (name, shown)
    assert offenders.function_of(value) is function


def test_lambdas() -> None:
    assert offenders.shown(lambda x: x) == "the function test_lambdas.<locals>.<lambda>"
    assert offenders.definition(functools.partial(lambda x: x)).endswith(" in <lambda>")
    assert offenders.definition(functools.partial(scaled)) == f"{__file__}:{LINE} in scaled"
    assert offenders.definition(len) == offenders.definition(3) == ""


def test_values() -> None:
    assert offenders.shown([scaled, 3, "x"]) == "[<function scaled>, 3, 'x']"
    assert offenders.shown(object()) == "<object object>"
    assert offenders.shown(torch.ones(2, 3)) == "a Tensor of torch.float32 [2, 3]"
    assert offenders.shown("x" * 400) == f"'{'x' * 299}..."
    assert str(errors.Refusal("TL112", "<f at 0x7f00>", "got <g at 0xAB1>", "x at 0x1", "a")) == (
        "[TL112] function called with the wrong arguments: <f>\n  at   a\n  why  got <g>\n  fix  x"
    )


VALUES = {name: value for name, (value, *_) in CALLABLES.items()} | {
    "a lambda": lambda x: x, "a list of them": [functools.partial(scaled)], "an object of no text": object(),
}  # fmt: skip
op, register, aot = tpu_lowering.kernel_op, tpu_lowering.register_kernel, tpu_lowering.aot_compile
PLACES: dict[str, Callable[[Any], Any]] = {
    # where a wrong value is given; a class or a module counts as a function in some
    "operator's name": op,
    "written arguments": lambda value: op("offenders::a", mutates_args=value),
    "operator's function": lambda value: op("offenders::b", mutates_args=("nothing",))(value),
    "operator": register,
    "target": chips.find,
    "option's name": lambda value: Options.create({value: 1} if isinstance(value, type(scaled)) else {id(value): 1}),
    **{f"option {name}": lambda value, name=name: Options.create({name: value}) for name in Options.names()},
    "arguments": lambda value: aot(scaled, value, target="v9"),
    "too many arguments": lambda value: tpu_lowering.explain(value, X, X, X, X, X),
    "donate": lambda value: aot(scaled, (X,), donate=value),
    "graph": tpu_lowering.passes.apply,
    "saved program": tpu_lowering.load,
    "sizes of a mesh": lambda value: tpu_lowering.fake_mesh(value).__enter__(),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", VALUES)
def test_no_error_says_an_address(place: str, what: str) -> None:
    with pytest.raises(Exception) as caught:
        PLACES[place](VALUES[what])
    error = caught.value
    if isinstance(error, errors.TpuLoweringError):
        assert " at 0x" not in str(error)
        assert not error.refusal.subject.startswith("functools.partial")
        assert "got functools.partial" not in str(error)
    else:  # Python's own, of a class or module that takes any arguments
        assert place == "too many arguments", repr(error)


# Kernels ----------------------------------------------------------------------------------------------
def line_of(code: str) -> int:
    with open(__file__) as file:
        return next(at for at, line in enumerate(file, 1) if line.strip() == code)


@pytest.mark.parametrize("what", ["an object", "a method", "a partial of an object"])
def test_a_kernel_that_is_no_plain_function_raises(what: str) -> None:
    """The error is at the line that raised, and has what was raised as its cause; so has what Dynamo makes of it."""
    name = f"offenders::{what.replace(' ', '_')}"
    operator = op(name)(VALUES[what])

    def refused(call: Callable[[], Any]) -> None:
        with pytest.raises(Exception) as caught:
            call()
        refusal = refusal_in(caught.value)
        assert refusal is not None and isinstance(refusal.__cause__, ValueError)
        assert str(refusal) == (
            f"[TL206] kernel cannot be traced to JAX: {name}\n"
            f'  at   {__file__}:{line_of("""raise ValueError("no such thing")""")} in helper: '
            'raise ValueError("no such thing")\n'
            "  why  expected a function that JAX can trace, got ValueError: no such thing\n"
            "  fix  mend that line. JAX traces the function, so its arrays have no values: use jax.numpy in place of "
            "torch and numpy, and jnp.where or jax.lax.cond in place of 'if'"
        )

    torch.compiler.reset()
    refused(lambda: operator(X))
    refused(lambda: torch.compile(lambda x: operator(x) + 1, backend="helion_tpu", fullgraph=True)(X))
    refused(lambda: tpu_lowering.explain(lambda x: operator(x) + 1, X))


@pytest.mark.parametrize("what", ["a partial", "a jitted one", "a wrapped one"])
def test_a_kernel_that_is_no_plain_function(what: str) -> None:
    operator = op(f"offenders::{what.replace(' ', '_')}")(VALUES[what])
    expected = X * (3 if what == "a partial" else 2)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: operator(x) + 1, backend="helion_tpu", fullgraph=True)
    assert torch.equal(operator(X), expected) and torch.equal(compiled(X), expected + 1)


def test_keyword_arguments() -> None:
    @op("offenders::by_keyword")
    def by_keyword(x: torch.Tensor, *, by: int = 2) -> torch.Tensor:
        return x * by

    torch.compiler.reset()
    compiled = torch.compile(lambda x: by_keyword(x, by=5) + 1, backend="helion_tpu", fullgraph=True)
    assert torch.equal(by_keyword(X), X * 2) and torch.equal(compiled(X), X * 5 + 1)


def test_the_line_is_the_user_s_where_jax_raises() -> None:
    @op("offenders::reshapes")
    def reshapes(x: torch.Tensor) -> torch.Tensor:
        return jnp.reshape(x, (3, 5))

    @op("offenders::numpys")
    def numpys(x: torch.Tensor) -> torch.Tensor:
        return np.asarray(x) * 2

    for operator, code in ((reshapes, "return jnp.reshape(x, (3, 5))"), (numpys, "return np.asarray(x) * 2")):
        with pytest.raises(errors.TpuLoweringError) as caught:
            operator(X)
        where = caught.value.refusal.where
        assert re.fullmatch(rf"{re.escape(__file__)}:{line_of(code)} in \w+: {re.escape(code)}", where)
        assert caught.value.__cause__ is not None
