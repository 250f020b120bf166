"""Mistakes of users: what each says, word for word, and the same code as the text says that it should be.

A case makes the mistake, compares the text, and returns what the mended code gives, beside what eager gives.
``EXPECTTEST_ACCEPT=1`` writes the texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tpu_lowering import TpuLoweringError
from tpu_lowering.capture.refusals import refusal_in

X = torch.arange(16.0) / 4 - 2
DOUBLE = X * 2
Result = tuple[Any, Any]
"""What the mended code gives, and what it should."""
Case = Callable[[], Result]
MISTAKES: dict[str, Case] = {}


def mistake(case: Case) -> Case:
    """Enters a case, under its module's and its own name."""
    name = f"{case.__module__.rpartition('.')[2]}: {case.__name__.replace('_', ' ')}"
    assert name not in MISTAKES
    MISTAKES[name] = case
    return case


def text(error: BaseException) -> str:
    """An error's text with lines of tests and their folder left out, which says where, why, and what to do."""
    said = re.sub(r"[^ '\"]*\.py:\d+", "FILE:LINE", str(getattr(error, "refusal", error)))
    assert " at 0x" not in said and "functools.partial" not in said and "\n  why  " in said and "\n  fix  " in said
    return said


def says(call: Callable[[], Any]) -> str:
    """The text of the refusal that a call ends with, whatever Dynamo wraps it in."""
    with pytest.raises(Exception) as caught:
        call()
    refusal = refusal_in(caught.value)
    assert refusal is not None, repr(caught.value)
    return text(refusal)


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, backend="helion_tpu", fullgraph=True, options=options)


def refused(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """What compiling a function says; checks that nothing else happened."""
    before = [
        value.clone() if isinstance(value, torch.Tensor) and value.device.type == "cpu" else None for value in arguments
    ]
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        compiled(function, **options)(*arguments)
    error = caught.value.inner_exception
    assert isinstance(error, TpuLoweringError), error
    for value, old in zip(arguments, before, strict=True):
        assert old is None or torch.equal(value.view(torch.uint8), old.view(torch.uint8))
    x = torch.ones(5)
    assert torch.equal(torch.compile(lambda x: x + 1, backend="helion_tpu")(x), x + 1)
    return text(error)


def gradient(function: Callable[..., Any], x: torch.Tensor = X) -> torch.Tensor:
    """The gradient of a function's sum."""
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def into(kernel: Callable[..., Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that calls a kernel in destination-passing style."""

    def function(x: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        kernel(x, out)
        return out

    return function


def in_eager_and_compiled(kernel: Any) -> str:
    """What a wrong kernel's refusal says, the same in eager and compiled."""
    found = refused(into(kernel), X)
    assert says(lambda: into(kernel)(X)) == found
    return found


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def double_into(x: torch.Tensor, out: torch.Tensor) -> None:
    return x * 2  # type: ignore[return-value]


def double_of_torch(name: str) -> Any:
    """An operator of torch's that doubles, without a kernel."""
    operator = torch.library.custom_op(name, double, mutates_args=())
    operator.register_fake(torch.empty_like)
    return operator


def doubling() -> Callable[[torch.Tensor], torch.Tensor]:
    """A new function that doubles, to be a kernel."""

    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    return doubled
