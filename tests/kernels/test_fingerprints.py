"""Fingerprints tell functions apart by what they do, and know what they cannot follow."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch

from tests import global_state
from tpu_lowering.kernels.fingerprints import UnknownValueError, fingerprint
from tpu_lowering.runtime.cache import known_kernels

Function = Callable[..., Any]


def written(source: str, **names: Any) -> Function:
    """The function ``f`` of some source text, in a module of its own."""
    module = types.ModuleType("written")
    vars(module).update(jnp=jnp, jax=jax, math=math, torch=torch, functools=functools, **names)
    exec(compile(source, f"file_{abs(hash(source))}.py", "exec"), vars(module))
    return vars(module)["f"]


SAME = {
    "layout": ("def f(x):\n    return x + 1", "\n\ndef f(x):  # a remark\n\n    return (x + 1)"),
    "default": ("def f(x, n=2): return x * n", "def f(x, n=1 + 1): return x * n"),
}
DIFFERENT = {
    "constant": ("def f(x): return x + 1", "def f(x): return x + 2"),
    "constant's type": ("def f(x): return x + 1", "def f(x): return x + 1.0"),
    "sign of zero": ("def f(x): return x + 0.0", "def f(x): return x + -0.0"),
    "truth and one": ("def f(x): return x + 1", "def f(x): return x + True"),
    "operator": ("def f(x): return x + 1", "def f(x): return x - 1"),
    "member of a module": ("def f(x): return jnp.sin(x)", "def f(x): return jnp.cos(x)"),
    "default": ("def f(x, n=2): return x * n", "def f(x, n=3): return x * n"),
    "keyword default": ("def f(x, *, n=2): return x * n", "def f(x, *, n=3): return x * n"),
    "annotation": ("def f(x: int): return x", "def f(x: float): return x"),
    "function inside": ("def f(x):\n def g(y): return y * 2\n return g(x)", "def f(x):\n def g(y): return y * 3\n return g(x)"),
    "handler": ("def f(x):\n try: return x\n except ValueError: return 1", "def f(x):\n try: return x\n except KeyError: return 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_same_function(name: str) -> None:
    one, other = map(written, SAME[name])
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize("name", DIFFERENT)
def test_other_functions(name: str) -> None:
    one, other = map(written, DIFFERENT[name])
    assert fingerprint(one) != fingerprint(other)


def wrapped(factor: int) -> Function:
    """A function that says it is another one."""

    @functools.wraps(math.sqrt)
    def function(x: Any) -> Any:
        return x * factor

    return function


CALLS = "def f(x): return g(x)"
READS: dict[str, tuple[Any, Any]] = {
    "number": (2, 3),
    "function": (lambda x: x * 2, lambda x: x * 3),
    "function of a package": (jnp.sin, jnp.cos),
    "partial": (functools.partial(math.pow, 2), functools.partial(math.pow, 3)),
    "jitted": (jax.jit(lambda x: x * 2), jax.jit(lambda x: x * 3)),
    "jitted and wrapped": (jax.jit(wrapped(2)), jax.jit(wrapped(3))),
    "element type": (torch.float32, torch.bfloat16),
    "table": ({"a": [1, (2, 3)]}, {"a": [1, (2, 4)]}),
    "names of a table": ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
}


@pytest.mark.parametrize("name", READS)
def test_a_global_is_part_of_a_function(name: str) -> None:
    one, same, other = (written(CALLS, g=value) for value in (READS[name][0], *READS[name]))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


@pytest.mark.parametrize("name", READS)
def test_a_closure_is_part_of_a_function(name: str) -> None:
    def around(g: Any) -> Function:
        return lambda x: g(x)

    one, other = map(around, READS[name])
    assert fingerprint(one) == fingerprint(around(READS[name][0])) != fingerprint(other)


def test_functions_that_call_each_other() -> None:
    both = "def g(x): return f(x - 1)\ndef f(x): return {} if x < 1 else g(x)"
    one, same, other = (written(both.format(number)) for number in (1, 1, 2))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


class Thing:
    """Something of the user's."""


@pytest.mark.parametrize(
    ("source", "names", "what"),
    [
        (CALLS, {"g": Thing()}, "Thing"),
        (CALLS, {"g": Thing}, "Thing"),
        (CALLS, {"g": torch.zeros(2)}, "Tensor"),
        (CALLS, {"g": jnp.zeros(2)}, "ArrayImpl"),
        (CALLS, {"g": global_state}, "module"),
        (CALLS, {"g": Thing().__init__}, "method-wrapper"),
        (CALLS, {"g": torch.ops.aten.sin.default}, "OpOverload"),
        (CALLS, {}, "the name g, which is not defined"),
        ("def f(x): return eval('x')", {}, "builtin_function_or_method eval"),
        ("def f(x):\n import tests\n return tests.g(x)", {}, "import tests"),
        ("def f(x):\n from . import g\n return g(x)", {}, "import "),
    ],
)  # fmt: skip
def test_what_cannot_be_followed(source: str, names: dict[str, Any], what: str) -> None:
    with pytest.raises(UnknownValueError, match=what):
        fingerprint(written(source, **names))


def test_a_closure_without_a_value_cannot_be_followed() -> None:
    def around() -> Function:
        function = lambda: later  # noqa: E731
        if math.pi > 4:
            later = 1
        return function

    with pytest.raises(UnknownValueError, match="a closure without a value"):
        fingerprint(around())


def test_a_name_that_a_package_no_longer_has_for_a_function() -> None:
    """A function that says it is of a package, and is not what the package has under that name."""

    def sin(x: Any) -> Any:
        return x * MUTABLE[0]

    sin.__module__, sin.__qualname__ = "jax.numpy", "sin"
    before = fingerprint(sin)
    MUTABLE[0] = 3
    assert before != fingerprint(sin)


MUTABLE = [2]


def test_a_kernel_that_is_gone_or_changed_is_not_current() -> None:
    gone = [known_kernels.KnownKernel("operator", "nowhere::op.default", "nowhere::op", ""),
            known_kernels.KnownKernel("helion", "nowhere:kernel", "kernel", ""),
            known_kernels.KnownKernel("helion", f"{__name__}:Thing", "Thing", "")]  # fmt: skip
    assert not any(kernel.is_current() for kernel in gone)
