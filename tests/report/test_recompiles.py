"""Why a report's function was compiled again: by what this report did alone, with what helps for the kind of guard."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tpu_lowering
from tests.report.test_report import X
from tpu_lowering.backend import helion_tpu
from tpu_lowering.capture import recompiles
from tpu_lowering.ir.remarks import Remark
from tpu_lowering.report.collector import Collector


def scaled(x: torch.Tensor, factor: Any = 1) -> torch.Tensor:
    return x * factor


def test_what_was_compiled_before_is_no_reason() -> None:
    """Neither by an earlier report of the function, nor by the user."""
    torch.compile(scaled, backend="helion_tpu")(torch.ones(2, 3), 7)
    for size in range(4, 14):  # more than Dynamo's limit for one function
        report = tpu_lowering.explain(scaled, torch.ones(size, 3))
        assert (report.recompiles, report.programs_after) == ((), 1)
    users = Collector()
    torch.compile(scaled, backend=functools.partial(helion_tpu, observers=(users,)))(torch.ones(20, 3), 3.5)
    assert len(users.programs) == 1  # reports leave Dynamo's limit to the user's own calls


def found(function: Callable[..., Any], *calls: tuple[Any, ...]) -> list[Remark]:
    """What a report says of these calls; each function has its own code."""
    return list(tpu_lowering.explain(function, *calls[0], calls=calls[1:]).recompiles)


def one(*calls: tuple[Any, ...]) -> tuple[str, str]:
    def function(x: torch.Tensor, factor: Any = 1) -> torch.Tensor:
        return scaled(x, factor)

    (remark,) = found(function, *calls)
    assert remark.code == "TL513" and remark.where.startswith("test_recompiles.py:")
    return remark.reason, remark.remedy


def test_a_size_is_marked() -> None:
    wide = torch.ones(24, 256)
    reason, remedy = one((X,), (wide,))
    assert reason == "tensor 'x' size mismatch at index 0. expected 16, actual 24"
    assert remedy == "mark the size beforehand: torch._dynamo.mark_dynamic(x, 0)"
    marked = X.clone()
    torch._dynamo.mark_dynamic(marked, 0)
    assert [remark.code for remark in found(lambda x: x * 2, (marked,), (wide,))] == ["TL512"]


def test_a_stride_is_made_contiguous() -> None:
    turned = torch.ones(256, 16).t()
    reason, remedy = one((X,), (turned,))
    assert reason == "tensor 'x' stride mismatch at index 0. expected 256, actual 1"
    assert remedy == "give it in one order in memory: x.contiguous()"
    assert found(lambda x: x * 2, (X,), (turned.contiguous(),)) == []


def test_a_number_becomes_a_tensor() -> None:
    reason, remedy = one((X, 1.5), (X, 2.5))
    assert (reason, remedy) == ("factor == 1.5", "keep factor equal, or make it a tensor: torch.tensor(factor)")
    assert found(lambda x, y: x * y, (X, torch.tensor(1.5)), (X, torch.tensor(2.5))) == []


def test_a_gradient_is_required_in_all_calls_or_in_none() -> None:
    reason, remedy = one((X,), (X.clone().requires_grad_(),))
    assert reason == "tensor 'x' requires_grad mismatch. expected requires_grad=0"
    assert remedy == "let x require a gradient in all calls or in none: x.detach()"
    assert found(lambda x: x * 2, (X,), (X.clone().requires_grad_().detach(),)) == []


def test_a_line_that_compares_a_size_is_where_it_is() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] < 20 else x * 3

    marked = X.clone()
    torch._dynamo.mark_dynamic(marked, 0)
    (remark,) = found(function, (marked,), (torch.ones(30, 256),))
    assert remark.reason == "2 <= x.size()[0] <= 19"
    assert remark.remedy == "leave out what compares the size, or nothing to do: each outcome has a program of its own"


@pytest.mark.parametrize(
    ("guard", "remedy"),
    [
        ("tensor 'x' dtype mismatch. expected Float, actual Double", "give x in one dtype"),
        ("tensor 'x' rank mismatch. expected 3, actual 2", "give x with one number of dimensions"),
        ("tensor 'x' dispatch key set mismatch. expected DispatchKeySet(CPU)", "give x on one device"),
        ("GLOBAL_STATE changed: grad_mode ", "call it always under torch.no_grad(), or never"),
        ("GLOBAL_STATE changed: num_threads", "keep torch's settings between calls: num_threads"),
        ('Duplicate tensors found: ["x", "y"]', "give one tensor twice in all calls or in none"),
        ("2 <= x.size()[0]", "nothing to do: sizes of 0 and 1"),
        ("x.size()[0] == 4", "leave out what compares the size"),
        ("len(o['l']) == 1", "keep the length of o['l']"),
        ("not len(o)", "keep the length of o"),
        ("y is None", "give y in all calls or in none"),
        ("___check_type_id(o['a'], 14037), type=<class 'int'>", "keep the type of o['a']"),
        ("___check_obj_id(f, 14052), type=<class 'function'>", "give the same object as f in all calls"),
        ("expected type of 'x' to be a tensor type, ' but found <class 'x'>", "give x as a tensor in all calls"),
        ("m == 'a'", "keep m equal"),
        ("___dict_contains('a', d)", ""),
    ],
)
def test_each_kind_of_guard_has_its_remedy(guard: str, remedy: str) -> None:
    said = recompiles.remedy_for(guard)
    assert said.startswith(remedy) and bool(said) is bool(remedy)


def test_dynamos_number_and_line_are_left_out() -> None:
    line = "0/1: o['#'] == 1        # def f(x, o): return x * o['#']  # model.py:3 in f (HINT: type int)"
    assert recompiles.guard_in(line) == "o['#'] == 1"
