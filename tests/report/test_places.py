"""Where things come from, and what stopped Dynamo or this package: never without a place and a reason."""

from __future__ import annotations

from typing import Any

import torch

import tpu_lowering
from tests.report.test_report import X, keeps_a_fill, model


@torch.library.custom_op("report_tests::without_lowering", mutates_args=())
def without_lowering(x: torch.Tensor) -> torch.Tensor:
    return x.sort().values


@without_lowering.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def line(function: Any, offset: int) -> str:
    return f"test_places.py:{function.__code__.co_firstlineno + offset}"


def breaks(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    print("in between")
    return model(y)


def test_a_graph_break_is_listed_with_dynamos_reason() -> None:
    report = tpu_lowering.explain(breaks, X)
    (found,) = report.graph_breaks
    assert (found.code, found.where) == ("TL515", f'{line(breaks, 2)} in breaks: print("in between")')
    assert found.reason.startswith("Failed to trace builtin operator: Dynamo does not know how to trace builtin")
    assert "Avoid calling builtin `print`" in found.remedy
    assert "2 XLA programs. No allocation is left. 1 graph break." in str(report)
    assert [buffer.node for buffer in report.removed] == ["empty_like"]
    assert tpu_lowering.explain(model, X).graph_breaks == ()  # breaks of before are not counted again


def resumes(x: torch.Tensor) -> torch.Tensor:
    torch._dynamo.graph_break()
    return keeps_a_fill(torch.empty_like(x))


def test_what_dynamo_resumes_has_the_functions_own_name() -> None:
    places = [box.where for graph in tpu_lowering.explain(resumes, X).graphs for box in graph.written]
    assert any(place.startswith(f"{line(resumes, 2)} in resumes: ") for place in places)
    assert not any("torch_dynamo_resume" in place for place in places)


def test_layers_without_a_line_of_the_users_are_named() -> None:
    """Dynamo leaves out the frames of torch's own modules, and a plain ``nn.Sequential`` has no others."""
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Dropout(0.5)))
    report = tpu_lowering.explain(layers, torch.randn(8, 4))
    places = {box.where for graph in report.graphs for box in (*graph.written, *graph.compiled)}
    assert places == {"module 0 (Linear)", "module 1.0 (Tanh)", "module 1.1 (Dropout)"}
    assert [draw.where for draw in report.draws] == ["module 1.1 (Dropout)"]


def test_a_kernel_takes_what_its_author_wrote() -> None:
    """Functionalizing copies a buffer before a kernel writes it; the author did not."""
    (graphs,) = tpu_lowering.explain(keeps_a_fill, X).graphs
    for side in (graphs.written, graphs.compiled):
        (kernel,) = (box for box in side if box.kind == "kernel")
        assert (kernel.operands, kernel.written) == (("arg0_1", "full_default"), ("full_default",))


def test_operators_in_eager_torch_are_listed() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.report_tests.without_lowering(x + 1) * 2

    report = tpu_lowering.explain(function, X, options={"fallback": "eager"})
    (found,) = report.in_eager
    assert (found.code, found.reason) == ("TL516", "report_tests.without_lowering.default: it has no lowering")
    assert found.where.startswith("test_places.py:")


def test_compile_time_by_whom() -> None:
    seconds = tpu_lowering.explain(model, X).compile_seconds
    assert list(seconds) == ["Dynamo", "AOTAutograd", "tpu_lowering", "XLA"]
    assert all(value > 0 for value in seconds.values())
