"""The sides of a comparison: one function of torch tensors, run in different ways."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import torch

from bench.cpu.timing import Local, Remote, Side, described, interleave

Function = Callable[..., Any]
Check = Callable[[Any], None]

_copies = itertools.count()

ISOLATED = ("inductor_pallas", "helion")
"""Sides with a process of their own. Inductor's Pallas backend clears all of JAX's caches in every call and changes
JAX's x64 flag, so JAX functions beside it would be compiled anew."""


def own_code(function: types.FunctionType) -> types.FunctionType:
    """A copy with a code object of its own: Dynamo tries every entry that was compiled for a code object in turn."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_copies)}")
    copied = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def compiled(function: Any, backend: str | Callable[..., Any], options: Mapping[str, Any] | None = None) -> Function:
    """``torch.compile`` for the sizes at hand."""
    given = dict(options) if options else None
    return torch.compile(own_code(function), backend=backend, fullgraph=True, dynamic=False, options=given)


def called(function: Function, arguments: Sequence[Any], check: Check) -> Callable[[], Any]:
    """A call of a function of torch tensors, after a first one whose result is checked; for inference mode."""
    check(function(*arguments))
    return functools.partial(function, *arguments)


def pallas_of_inductor(function: Any, arguments: Sequence[Any], check: Check) -> Callable[[], Any]:
    """Inductor with its Pallas backend on the CPU, in Pallas's interpreter."""
    from torch._inductor import config

    with config.patch(cpu_backend="pallas"):
        return called(compiled(function, "inductor"), arguments, check)


def jitted(function: Function, arguments: Sequence[torch.Tensor], check: Check) -> Callable[[], Any]:
    """A JAX function under ``jax.jit``, on JAX arrays."""
    own = jax.jit(function)
    given = [jax.dlpack.from_dlpack(argument) for argument in arguments]
    check(torch.from_dlpack(own(*given)))
    return lambda: jax.block_until_ready(own(*given))


def closeness(expected: Any, relative: float, absolute: float) -> Check:
    """A check that a result is an expected one."""
    return lambda found: torch.testing.assert_close(found, expected, rtol=relative, atol=absolute)


class Sides:
    """Sides under construction: one that cannot be built is an error in the results, not the end of a run.

    Those in ``ISOLATED`` are forked when this value is made, which has to be before this process computes anything.
    """

    def __init__(self, builders: Mapping[str, Callable[[], Callable[[], object]]]) -> None:
        self.local = {name: builder for name, builder in builders.items() if name not in ISOLATED}
        self.sides: dict[str, Side] = {}
        self.errors: dict[str, str] = {}
        for name, builder in builders.items():
            if name in ISOLATED:
                self._add(name, functools.partial(Remote, builder))

    def _add(self, name: str, make: Callable[[], Side]) -> None:
        try:
            self.sides[name] = make()
        except Exception as error:
            self.errors[name] = described(error)

    def measure(self, rounds: int, calls: int | None = None, inference: bool = True) -> dict[str, Any]:
        """Builds the sides of this process, measures all in turns, and ends the other processes.

        Args:
            rounds: samples a side.
            calls: a sample; None for as many as take some time.
            inference: whether in torch's inference mode.

        Returns:
            The entries of all sides, by name.
        """
        with torch.inference_mode(inference):
            for name, builder in self.local.items():
                self._add(name, lambda build=builder: Local(build()))
            measured = interleave(self.sides, rounds, calls)
        for side in self.sides.values():
            if isinstance(side, Remote):
                side.stop()
        return {**measured, **{name: {"error": text} for name, text in self.errors.items()}}
