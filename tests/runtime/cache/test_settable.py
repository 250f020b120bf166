"""What a kernel reads is part of what it is found by, or it is not found: in later processes and in the same one."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import types
from collections.abc import Generator
from typing import Any

import helion
import helion.language as hl
import jax
import pytest
import torch
from jax import nn
from jax import numpy as jnp

import tpu_lowering
from tests.processes import forked
from tests.runtime.cache import settable
from tpu_lowering.kernels.fingerprints import follow

SCRIPT = pathlib.Path(settable.__file__)
IN_GRAPHS = SCRIPT.with_name("python_in_graphs.py")
X = torch.ones(3, dtype=torch.float32)


def printed(script: pathlib.Path, folder: pathlib.Path, name: str, *arguments: str, **variables: str) -> str:
    """What a process of a server prints."""
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"), **variables}
    return forked.run(str(script), str(folder / "ours"), *arguments, name=name, **variables)


@pytest.mark.parametrize("precompile", ["0", "1"])
@pytest.mark.parametrize("script", [SCRIPT, IN_GRAPHS], ids=lambda path: path.stem)
def test_a_later_process_finds_nothing_with_another_number(
    script: pathlib.Path, precompile: str, tmp_path: pathlib.Path
) -> None:
    for number, server in ((2, "first"), (3, "second")):
        lines = printed(script, tmp_path, server, str(number), TORCH_CACHING_PRECOMPILE=precompile).splitlines()
        found = json.loads(lines[-1])
        assert len(found) > 5 and {name: value for name, value in found.items() if value != number} == {}


@pytest.fixture
def untouched() -> Generator[None]:
    """Puts back what entries of the table put into released modules."""
    modules = [jnp, nn, settable.math, settable.sys, settable]
    before = [dict(vars(module)) for module in modules]
    code, dtype = nn.hard_tanh.__wrapped__.__code__, torch.get_default_dtype()
    arguments, environment = list(sys.argv), dict(os.environ)
    yield
    for module, names in zip(modules, before, strict=True):
        vars(module).clear()
        vars(module).update(names)
    for name, owner in (("factor", nn.soft_sign), ("factor", jax.ShapeDtypeStruct)):
        if hasattr(owner, name):
            delattr(owner, name)
    nn.hard_tanh.__wrapped__.__code__ = code
    torch.set_default_dtype(dtype)
    jax.config.update("jax_default_matmul_precision", None)
    sys.argv[:] = arguments
    os.environ.clear()
    os.environ.update(environment)


_operators: dict[str, Any] = {}


def operator_of(name: str) -> Any:
    if name not in _operators:
        function = settable.TABLE[name][0]
        made = types.FunctionType(function.__code__, function.__globals__, name, None, function.__closure__)
        made.__annotations__ = {"x": torch.Tensor, "return": torch.Tensor}
        _operators[name] = tpu_lowering.kernel_op(f"settable_here::{name}")(made)
    return _operators[name]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", settable.TABLE)
def test_a_call_in_eager_torch_has_the_number_of_its_time(name: str) -> None:
    operator, put = operator_of(name), settable.TABLE[name][1]
    for number in (2, 3, 2):
        put(number)
        assert float(operator(X)[0]) == number


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", [*settable.FOLLOWED, *settable.SEEN])
def test_a_compiled_program_is_compiled_again_when_a_number_changes(name: str) -> None:
    """Without being asked to: the same sizes, the same compiled function."""
    operator, put = operator_of(name), settable.TABLE[name][1]
    torch.compiler.reset()
    compiled = torch.compile(lambda x: operator(x) + 1, backend="helion_tpu", fullgraph=True)
    with torch.inference_mode():
        for number in (2, 3, 2):
            put(number)
            assert float(compiled(X)[0]) == number + 1


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", settable.TABLE)
def test_what_is_compiled_anew_has_the_number_of_its_time(name: str) -> None:
    operator, put = operator_of(name), settable.TABLE[name][1]
    for number in (2, 3, 2):
        put(number)
        torch.compiler.reset()
        assert float(torch.compile(lambda x: operator(x), backend="helion_tpu", fullgraph=True)(X)[0]) == number


def test_symbolic_sizes_and_training_are_compiled_again_too() -> None:
    operator, put = operator_of("a_global"), settable.TABLE["a_global"][1]
    torch.compiler.reset()
    compiled = torch.compile(lambda x, w: operator(x) * w, backend="helion_tpu", fullgraph=True, dynamic=True)
    weight = torch.ones((), requires_grad=True)
    for number in (2, 3):
        put(number)
        for size in (3, 4, 3):
            result = compiled(torch.ones(size), weight)
            assert result.tolist() == [number] * size
        (gradient,) = torch.autograd.grad(result.sum(), weight)
        assert float(gradient) == 3 * number


@pytest.mark.parametrize("name", [name for name in settable.FOLLOWED if "released" not in name])
def test_most_of_it_can_be_followed(name: str) -> None:
    """So a later process does not trace it: a refusal to follow anything would pass the tests above."""
    settable.TABLE[name][1](2)
    assert follow(settable.TABLE[name][0]).unknown in (
        "",
        "builtins.function arctanh",
        "jaxlib._jax.PjitFunction arccosh",
    )


def test_nothing_is_traced_twice_while_nothing_changes() -> None:
    traced: list[int] = []

    def count(x: torch.Tensor) -> torch.Tensor:
        return x * FACTOR

    operator = tpu_lowering.kernel_op("settable_here::counted")(count)
    from tpu_lowering.kernels import jax_function

    before = jax_function._trace
    try:
        jax_function._trace = lambda *given: traced.append(1) or before(*given)
        for _ in range(3):
            operator(X)
    finally:
        jax_function._trace = before
    assert traced == [1]


FACTOR = 2


@helion.kernel(config=helion.Config(block_sizes=[8]), static_shapes=True, backend="pallas")
def scaled_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size(0)):
        out[tile] = halved(x[tile]) * IN_LAUNCH


def halved(x: torch.Tensor) -> torch.Tensor:
    return x * IN_HALVED


IN_LAUNCH, IN_HALVED = 2, 0.5


def test_a_helion_kernel_is_compiled_again_when_a_number_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A global of the kernel, one of a function that it calls, and that function."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        scaled_into(x, out)
        return out + 1

    torch.compiler.reset()
    compiled, x = torch.compile(function, backend="helion_tpu", fullgraph=True), torch.ones(8)
    assert compiled(x).tolist() == [2.0] * 8
    monkeypatch.setattr(sys.modules[__name__], "IN_LAUNCH", 6)
    assert compiled(x).tolist() == [4.0] * 8
    monkeypatch.setattr(sys.modules[__name__], "IN_HALVED", 2.0)
    assert compiled(x).tolist() == [13.0] * 8
    monkeypatch.setattr(sys.modules[__name__], "halved", torch.neg)
    assert compiled(x).tolist() == [-5.0] * 8


@tpu_lowering.kernel_op("settable_here::scale")
def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


def test_numbers_that_are_equal_and_not_the_same() -> None:
    for factor in (0.0, -0.0, 1.0, float("nan"), 1.0 + 2**-40):
        found = scale(X, factor).tolist()[0]
        assert repr(torch.tensor(found)) == repr(torch.tensor(factor)) and str(found)[0] == str(factor)[0]


def test_a_program_of_an_earlier_process_whose_kernel_changed_is_refused(tmp_path: pathlib.Path) -> None:
    """It came without its graph, so it cannot be compiled again."""
    script = tmp_path / "script.py"
    script.write_text(CHANGED)
    first, second = (printed(script, tmp_path, server) for server in ("first", "second"))
    assert first == "2.0\n3.0\n3.0\n"
    assert second == (
        "2.0\n"
        "[TL216] kernel changed under a program that cannot be compiled again: a program of an earlier process\n"
        "  why  expected kernels that read the values they read when the program was found in the cache, got another value\n"
        "  fix  call torch.compiler.reset() after changing what a kernel reads, or give the kernel the value as an argument\n"
        "3.0\n"
    )


CHANGED = """
import sys

import torch

import tpu_lowering

FACTOR = 2

@tpu_lowering.kernel_op("changed::scale")
def scale(x: torch.Tensor) -> torch.Tensor:
    return x * FACTOR

def make():
    return torch.compile(lambda x: scale(x) + 0, backend="helion_tpu", options={"cache": sys.argv[1]})

compiled = make()
with torch.inference_mode():
    print(compiled(torch.ones(3))[0].item())
    FACTOR = 3
    try:
        print(compiled(torch.ones(3))[0].item())
    except tpu_lowering.TpuLoweringError as error:
        print(error)
    torch.compiler.reset()
    print(make()(torch.ones(3))[0].item())
"""


WRITTEN: list[int] = []


@tpu_lowering.kernel_op("settable_here::writes")
def writes(x: torch.Tensor) -> torch.Tensor:
    WRITTEN.append(1)
    return x * FACTOR


def test_a_kernel_that_writes_to_what_it_reads_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when another name changes, of which the report says why."""
    torch.compiler.reset()
    report = tpu_lowering.explain(lambda x: writes(x) + 1, X, calls=[(X,), (X,)])
    assert not report.recompiles
    compiled = torch.compile(lambda x: writes(x) + 1, backend="helion_tpu", fullgraph=True)
    assert compiled(X)[0] == FACTOR + 1
    traced = len(WRITTEN)
    for _ in range(3):
        compiled(X)
    assert len(WRITTEN) == traced
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 5)
    assert compiled(X)[0] == 6 and len(WRITTEN) > traced
