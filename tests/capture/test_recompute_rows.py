"""Rows that the backward computes again: what is saved, values against eager and float64, and what stays as it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import checkpoint

import tpu_lowering
from tpu_lowering import aot
from tpu_lowering.backend import helion_tpu
from tpu_lowering.capture.recompute_rows import recompute_rows
from tpu_lowering.ir import chips
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.printer import print_graph

aten = torch.ops.aten
bf16, f16, f32, f64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
ROWS, CLASSES = 12, 40


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Generator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Seen:
    """What forwards give to their backwards, and what the partition said."""

    def __init__(self) -> None:
        self.saved: list[torch.Tensor] = []
        self.actions: list[Action] = []

    def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
        if stage == "captured" and program.startswith("forward"):
            outputs: Any = module.graph.output_node().args[0]
            values = [node.meta["val"] for node in outputs if isinstance(node, fx.Node)]
            self.saved = [value for value in values if isinstance(value, torch.Tensor)]

    def acted(self, program: str, name: str, actions: Sequence[Action]) -> None:
        if name == "partition":
            self.actions += actions

    def compiled(self, program: Any, source: Any) -> None:
        """Nothing of it is kept."""

    def bytes_of(self, size: int) -> list[int]:
        """Bytes of an element of each saved value of that many elements."""
        return [value.itemsize for value in self.saved if value.numel() == size and value.dtype.is_floating_point]


def compiled(fn: Callable[..., Any], seen: Seen | None = None, **options: Any) -> Callable[..., Any]:
    observers = () if seen is None else (seen,)
    dynamic = options.pop("dynamic", False)
    backend = functools.partial(helion_tpu, options=options, observers=observers)
    return torch.compile(fn, backend=backend, fullgraph=True, dynamic=dynamic)


WEIGHT = torch.linspace(0.5, 1.5, CLASSES)
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: dict[str, Loss] = {
    "cross_entropy": F.cross_entropy,
    "cross_entropy of float32": lambda x, y: F.cross_entropy(x.float(), y),
    "summed": lambda x, y: F.cross_entropy(x, y, reduction="sum"),
    "each": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    "ignored labels": lambda x, y: F.cross_entropy(x.float(), torch.where(y % 3 == 0, -100, y), ignore_index=-100),
    "label smoothing": lambda x, y: F.cross_entropy(x.float(), y, label_smoothing=0.1),
    "class weights": lambda x, y: F.cross_entropy(x, y, weight=WEIGHT.to(x.dtype), label_smoothing=0.2),
    "probabilities": lambda x, y: F.cross_entropy(x.float(), F.one_hot(y, x.shape[1]).float() * 0.9 + 0.1 / x.shape[1]),
    "log_softmax and nll_loss": lambda x, y: F.nll_loss(F.log_softmax(x, -1, dtype=f32), y),
    "kl_div": lambda x, y: F.kl_div(
        F.log_softmax(x.float(), 1), F.one_hot(y, x.shape[1]).float() * 0.5 + 0.01, reduction="batchmean"
    ),
    "softcapped": lambda x, y: F.cross_entropy(30 * torch.tanh(x / 30).float(), y),
    "shifted": lambda x, y: F.cross_entropy(x.float()[:-1].reshape(-1, x.shape[1]), y[1:]),
    "columns": lambda x, y: F.cross_entropy(x.reshape(2, -1, x.shape[1]).transpose(1, 2), y.reshape(2, -1)),
}


def inputs(dtype: torch.dtype, rows: int = ROWS, classes: int = CLASSES) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden = torch.randn(rows, 8, dtype=f64).to(dtype).requires_grad_()
    head = torch.randn(8, classes, dtype=f64).to(dtype).requires_grad_()
    return hidden, head, torch.randint(classes, (rows,))


def trained(
    fn: Callable[..., torch.Tensor], args: Sequence[torch.Tensor], gradient: torch.Tensor
) -> list[torch.Tensor]:
    leaves = [arg.detach().clone().requires_grad_() if arg.is_floating_point() else arg for arg in args]
    result = fn(*leaves)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    return [result.detach(), *torch.autograd.grad(result, wanted, gradient.to(result.dtype).expand_as(result))]


def error(values: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> list[float]:
    """The largest error of each, as a share of the largest element."""
    return [
        float((value.double() - one).abs().max() / one.abs().max()) for value, one in zip(values, exact, strict=True)
    ]


CASES = [
    *((name, (ROWS, CLASSES), bf16) for name in LOSSES),
    ("cross_entropy", (6, 301), bf16),
    ("cross_entropy", (6, 301), f32),
    ("cross_entropy of float32", (ROWS, CLASSES), f16),
    ("label smoothing", (6, 301), f32),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "size", "dtype"), CASES, ids=[f"{n} {s[0]}x{s[1]} {d}" for n, s, d in CASES])
def test_gradients_are_as_exact_as_eager_s(name: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    def fn(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return LOSSES[name](hidden @ head, labels)

    args, seen, gradient = inputs(dtype, *size), Seen(), torch.tensor(1.5)
    found, eager = trained(compiled(fn, seen), args, gradient), trained(fn, args, gradient)
    exact = trained(fn, [arg.double() if arg.is_floating_point() else arg for arg in args], gradient)
    slack = {bf16: 2e-2, f16: 3e-3, f32: 2e-6}[dtype]
    for mine, theirs in zip(error(found, exact), error(eager, exact), strict=True):
        assert mine <= 1.5 * theirs + slack
    for mine, theirs in zip(found, eager, strict=True):
        torch.testing.assert_close(mine / theirs.abs().max(), theirs / theirs.abs().max(), rtol=slack, atol=slack)
    assert [action.code for action in seen.actions] == ["TL524"]
    # The logits are saved as the product gave them, and nothing of their size beside: targets are, if they are there.
    logits = [width for width in seen.bytes_of(size[0] * size[1]) if width >= dtype.itemsize]
    assert logits.count(dtype.itemsize) >= 1 and len(logits) <= (2 if name in ("probabilities", "kl_div") else 1)


def test_a_softmax_in_float32_of_narrow_scores_is_computed_again() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ w, -1, dtype=f32).to(bf16) @ v

    torch.manual_seed(0)
    args = [torch.randn(shape, dtype=bf16, requires_grad=True) for shape in ((12, 8), (8, 40), (40, 4))]
    seen, gradient = Seen(), torch.tensor(1.0)
    found, eager = trained(compiled(fn, seen), args, gradient), trained(fn, args, gradient)
    for mine, theirs in zip(found, eager, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)
    assert [action.code for action in seen.actions] == ["TL524"]
    assert seen.bytes_of(12 * 40) == [2, 2]  # the scores, and the weights that the product takes


def returned(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    logs = F.log_softmax(x, -1)
    return logs, logs.exp().sum()


def view_returned(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    logs = F.log_softmax(x, -1)
    return logs.view(-1), logs.exp().sum()


def multiplied(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (F.log_softmax(x, -1) @ x.t(),)


def softmax_of_equal_width(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (torch.softmax(x, -1).square().sum(),)


def of_one_number(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (F.log_softmax(x.sum(), 0) * 2,)


def of_nothing(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (F.log_softmax(x[:0], -1).sum() + x.sum(),)


def checkpointed(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (checkpoint.checkpoint(lambda x: F.log_softmax(x.sin(), -1).square().sum(), x, use_reentrant=False),)


STAY = (returned, view_returned, multiplied, softmax_of_equal_width, of_one_number, of_nothing, checkpointed)


@pytest.mark.parametrize("fn", STAY, ids=lambda fn: fn.__name__)
def test_what_is_held_anyway_stays_whole(fn: Callable[..., tuple[torch.Tensor, ...]]) -> None:
    torch.manual_seed(0)
    x, seen = torch.randn(ROWS, CLASSES, requires_grad=True), Seen()
    found, expected = compiled(fn, seen)(x), fn(x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    gradients = [torch.autograd.grad([value.sum() for value in values], x)[0] for values in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert seen.actions == []


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_other_dimensions_and_layouts(dim: int) -> None:
    """Rows that lie across memory, an infinite logit, a row of -inf."""
    torch.manual_seed(0)
    x = torch.randn(CLASSES, ROWS).t()
    x[2], x[3, 4] = -torch.inf, torch.inf

    def fn(x: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(x, dim).square()

    seen, gradient = Seen(), torch.tensor(1.0)
    found, eager = trained(compiled(fn, seen), [x], gradient), trained(fn, [x], gradient)
    for mine, theirs in zip(found, eager, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True)
        assert mine.stride() == theirs.stride()
    assert len(seen.actions) == 1


@pytest.mark.parametrize("buckets", [None, "power_of_two"])
def test_sizes_that_change(buckets: Any) -> None:
    seen = Seen()
    options = {} if buckets is None else {"buckets": buckets}
    fn = compiled(lambda x, y: F.cross_entropy(x.float(), y), seen, dynamic=True, **options)
    for rows, classes in ((5, 19), (7, 40), (6, 33)):
        torch.manual_seed(0)
        x, labels = torch.randn(rows, classes, dtype=bf16), torch.randint(classes, (rows,))
        args, gradient = [x, labels], torch.tensor(1.0)
        eager = trained(lambda x, y: F.cross_entropy(x.float(), y), args, gradient)
        for mine, theirs in zip(trained(fn, args, gradient), eager, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=1e-4)
    assert {action.code for action in seen.actions} == {"TL524"}
    assert all(value.dtype != f32 for value in seen.saved if value.dim() == 2 and value.shape[1] != 1)


def test_explain_says_what_is_computed_again() -> None:
    x, labels = torch.randn(4, 8, dtype=bf16, requires_grad=True), torch.zeros(4, dtype=torch.long)
    report = tpu_lowering.explain(lambda x, y: F.cross_entropy(x.float(), y), x, labels)
    (note,) = [note for note in report.notes if note.code == "TL524"]
    assert "(bf16) and two numbers a row" in note.reason and "cross_entropy" in note.where
    assert "TL524" in str(report)


def test_a_joint_graph_before_and_after() -> None:
    def joint(primals: torch.Tensor, tangents: torch.Tensor) -> list[torch.Tensor]:
        wide = torch.ops.prims.convert_element_type(primals, f32)
        logs = aten._log_softmax(wide, 1, False)
        gradient = aten._log_softmax_backward_data(tangents * 2, logs, 1, f32)
        return [logs[:, :1] + 1, gradient]

    module = make_fx(joint, tracing_mode="fake")(torch.randn(4, 8, dtype=bf16), torch.randn(4, 8))
    for node, name in zip(module.graph.find_nodes(op="placeholder"), ("primals_1", "tangents_1"), strict=True):
        node.target = name
    actions = recompute_rows(module.graph, 1)
    assert [action.reason.partition(", of ")[2] for action in actions] == [
        "primals_1 (bf16) and two numbers a row, instead of holding it"
    ]
    assert print_graph(module.graph).splitlines()[:9] == [
        "%primals_1: bf16[4, 8] = input",
        "%tangents_1: f32[4, 8] = input",
        "%convert_element_type: f32[4, 8] = prims.convert_element_type.default(%primals_1, float32)",
        "%amax_default: f32[4, 1] = aten.amax.default(%convert_element_type, [1], True)",
        "%sub_tensor: f32[4, 8] = aten.sub.Tensor(%convert_element_type, %amax_default)",
        "%exp_default: f32[4, 8] = aten.exp.default(%sub_tensor)",
        "%sum_dim_int_list: f32[4, 1] = aten.sum.dim_IntList(%exp_default, [1], True)",
        "%log_default: f32[4, 1] = aten.log.default(%sum_dim_int_list)",
        "%sub_tensor_1: f32[4, 8] = aten.sub.Tensor(%sub_tensor, %log_default)",
    ]
    again = [node.name for node in module.graph.nodes if node.meta.get("recompute")]
    assert again == ["sub_tensor", "exp_default", "sub_tensor_1"]


def test_bytes_of_a_training_step() -> None:
    """8 MiB of bfloat16 logits are written by nobody here: read by the forward once, and by the backward once, which
    writes their gradient."""
    x, labels = torch.empty(1024, 4096, dtype=bf16, requires_grad=True), torch.zeros(1024, dtype=torch.long)
    chip = chips.find("tpu7x")
    captured = aot.capture_step(lambda x, y: F.cross_entropy(x.float(), y), (x, labels), {}, chip, {})
    moved = [aot.compile_captured(one, chip, True, False).hbm_bytes for one in captured]
    assert [round(nbytes / x.nbytes, 1) for nbytes in moved] == [1.0, 2.0]
