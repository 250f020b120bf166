"""Writes to arguments and to values, through views too, and what results share with arguments and each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.semantics.arguments import below, floats, ints, mask
from tests.semantics.eager_check import Case, both_ways, check


def then(*writes: Callable[..., Any], result: Callable[..., Any] = lambda x: x + 0.5) -> Callable[..., Any]:
    """A function that makes some writes to its first argument, then computes a result of it."""

    def run(x: torch.Tensor, *others: torch.Tensor) -> Any:
        for write in writes:
            write(x, *others)
        return result(x)

    return run


def set_to(index: Any, value: Any) -> Callable[..., Any]:
    def write(x: torch.Tensor, *others: torch.Tensor) -> None:
        x[index] = value

    return write


def one(n: int) -> tuple[torch.Tensor]:
    return (floats(n, 3),)


def nothing(x: torch.Tensor) -> None:
    return None


MUTATIONS = {
    "add_": Case(then(lambda x: x.add_(1)), one),
    "mul_ without a result": Case(then(lambda x: x.mul_(2), result=nothing), one),
    "twice": Case(then(lambda x: x.add_(1), lambda x: x.mul_(3)), one),
    "the result is the argument": Case(then(lambda x: x.add_(1), result=lambda x: x), one),
    "the result is a view of the argument": Case(then(lambda x: x.add_(1), result=lambda x: x[1:]), one),
    "a row": Case(then(set_to(1, 0.0)), one),
    "a column": Case(then(set_to((slice(None), 1), 4.0)), one),
    "every second row": Case(then(set_to(slice(None, None, 2), -1.0)), one),
    "through a transposed view": Case(then(lambda x: x.t()[0].fill_(2)), one),
    "through two views": Case(then(lambda x: x[1:].view(-1)[2:].add_(1)), one),
    "through a diagonal": Case(then(lambda x: x.diagonal().zero_()), one),
    "through split": Case(then(lambda x: x.split(2, 1)[0].mul_(-1)), one),
    "through unbind": Case(then(lambda x: x.unbind(0)[1].neg_()), one),
    "through squeeze": Case(then(lambda x: x.unsqueeze(0).squeeze(0).exp_()), one),
    "through as_strided": Case(then(lambda x: x.as_strided((2, 2), (3, 1), 1).fill_(9)), one),
    "a view first, then the base": Case(lambda x: (x[0], x.add_(1))[0] * 2, one),
    "copy_": Case(then(lambda x, y: x.copy_(y)), lambda n: (floats(n, 3), floats(3))),
    "copy_ of integers": Case(then(lambda x, y: x.copy_(y)), lambda n: (floats(n, 3), ints(n, 3))),
    "copy_ from its own part": Case(then(lambda x: x[0].copy_(x[1])), one),
    "zero_, then a sum": Case(then(lambda x: x.zero_(), lambda x: x.add_(2)), one),
    "fill_ by a tensor": Case(then(lambda x, v: x.fill_(v)), lambda n: (floats(n, 3), torch.tensor(4.0))),
    "clamp_": Case(then(lambda x: x.clamp_(-1, 1)), one),
    "integers in place": Case(then(lambda x: x.floor_divide_(2), result=lambda x: x), lambda n: (ints(n, 3),)),
    "bools in place": Case(then(lambda x: x.logical_not_(), result=lambda x: x.sum()), lambda n: (mask(n),)),
    "bfloat16 plus float32 in place": Case(
        then(lambda x, y: x.add_(y)), lambda n: (floats(n, 3, dtype=torch.bfloat16), floats(n, 3))
    ),
    "an argument of transposed strides": Case(then(lambda x: x.add_(1)), lambda n: (floats(3, n).t(),)),
    "an argument with gaps": Case(then(lambda x: x.add_(1)), lambda n: (floats(n, 6)[:, ::2],)),
    "an argument at an offset": Case(then(lambda x: x.mul_(2)), lambda n: (floats(n + 1, 3)[1:],)),
    "channels last": Case(
        then(lambda x: x.relu_()), lambda n: (floats(2, 3, n, 2).contiguous(memory_format=torch.channels_last),)
    ),
    "two arguments": Case(lambda x, y: (x.add_(y), y.mul_(x)), lambda n: (floats(n, 3), floats(n, 3) + 1)),
    "swapped": Case(
        lambda x, y: (lambda a, b: (x.copy_(b), y.copy_(a)))(x.clone(), y.clone()),
        lambda n: (floats(n), floats(n) + 1),
    ),
    "out=": Case(lambda x, y: torch.add(x, 1, out=y), lambda n: (floats(n, 3), floats(n, 3) * 0)),
    "out= of a matrix product": Case(
        lambda x, y: torch.mm(x, x.t(), out=y), lambda n: (floats(n, 3), floats(n, n) * 0)
    ),
    "a list of tensors in place": Case(lambda x, y: torch._foreach_add_([x, y], 1), lambda n: (floats(n), floats(3))),
    "addcmul_": Case(lambda x, y: x.addcmul_(y, y, value=0.5), lambda n: (floats(n), floats(n) + 1)),
    "sort into out": Case(
        lambda x, v, i: torch.sort(x, out=(v, i)), lambda n: (floats(n), floats(n) * 0, below(n, n) * 0)
    ),
    "a fresh value, in part": Case(lambda x: torch.zeros_like(x).index_fill_(0, torch.tensor([1]), 3) + x, one),
    "empty, filled in parts": Case(
        lambda x: (lambda e: (e[0].copy_(x[1]), e[1:].fill_(2), e)[2])(torch.empty_like(x)), one
    ),
    "detached": Case(lambda x: x.detach().add_(1) + x, one),
    "a leaf under no_grad": Case(
        lambda x: torch.no_grad()(lambda: x.add_(1))() * 1, lambda n: (floats(n, 3).requires_grad_(),)
    ),
    "a computed value that has a gradient": Case(
        lambda x: (x * 2).add_(1).square(), lambda n: (floats(n, 3).requires_grad_(),)
    ),
    "a part of one that has a gradient": Case(
        lambda x: then(set_to(1, 0.0))(x * 2), lambda n: (floats(n, 3).requires_grad_(),)
    ),
}  # fmt: skip

SHARED = {
    "an argument": Case(lambda x: x, one),
    "an argument twice": Case(lambda x: (x, x), one),
    "a view of an argument": Case(lambda x: x[1:], one),
    "a view of a view": Case(lambda x: x[1:].t()[1], one),
    "two views of an argument": Case(lambda x: (x[0], x[1:]), one),
    "a value twice": Case(lambda x: (lambda y: (y, y))(x * 2), one),
    "a value and its view": Case(lambda x: (lambda y: (y, y[1]))(x * 2), one),
    "two views of a value": Case(lambda x: (lambda y: (y[0], y[1:]))(x * 2), one),
    "a value and its transpose": Case(lambda x: (lambda y: (y, y.t()))(x * 2), one),
    "a value and its reshape": Case(lambda x: (lambda y: (y, y.reshape(-1)))(x * 2), one),
    "a value and its copy": Case(lambda x: (lambda y: (y, y.clone()))(x * 2), one),
    "a value and itself, contiguous": Case(lambda x: (lambda y: (y, y.contiguous()))(x * 2), one),
    "a value and itself, of its own type": Case(lambda x: (lambda y: (y, y.float()))(x * 2), one),
    "a value expanded": Case(lambda x: (lambda y: (y, y.expand(2, -1, -1)))(x * 2), one),
    "chunks of a value": Case(lambda x: (x * 2).chunk(2), one),
    "columns of a value": Case(lambda x: (x * 2).unbind(1), one),
    "a constant and its view": Case(lambda x: (lambda y: (y, y[0], x + 1))(torch.ones(2, 2)), one),
    "a mutated argument and its view": Case(lambda x: (x.add_(1), x[0]), one),
    "a value and a view that was written to": Case(lambda x: (lambda y: (y, y[0].add_(5)))(x * 2), one),
    "a value as another type": Case(lambda x: (lambda y: (y, y.view(torch.int32)))(x * 2), one),
    "nested results": Case(lambda x: {"a": [x, (x + 1, None)], "b": x[0]}, one),
    "empty results": Case(lambda x: (x[:0], (x * 2)[:0], x.sum()), one),
    "alias of an argument": Case(lambda x: torch.ops.aten.alias(x), one),
    "the same argument given twice": Case(lambda x, y: (x + y, y[0]), lambda n: (floats(n, 3),) * 2),
    "an argument and its view, given": Case(
        lambda x, y: x + y.sum(), lambda n: (lambda x: (x, x[1:]))(floats(n, 3))
    ),
    "a value and its view with gradients": Case(
        lambda x: (lambda y: (y, y[1]))(x * 2), lambda n: (floats(n, 3).requires_grad_(),)
    ),
    "a view of an argument with gradients": Case(lambda x: (x[1:], x * 2), lambda n: (floats(n, 3).requires_grad_(),)),
}  # fmt: skip


@both_ways(MUTATIONS)
def test_mutations(case: Case, dynamic: bool) -> None:
    check(case, dynamic)


@both_ways(SHARED)
def test_what_is_shared(case: Case, dynamic: bool) -> None:
    check(case, dynamic)
