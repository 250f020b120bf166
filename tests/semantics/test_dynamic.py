"""Functions whose sizes, and numbers among their arguments, change from one call to the next."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.semantics.arguments import below, floats, mask
from tests.semantics.eager_check import Case, both_ways, check

CASES = {
    "arange of a size": Case(lambda x: x + torch.arange(x.shape[0])[:, None], lambda n: (floats(n, 3),)),
    "a size as a factor": Case(lambda x: x * x.shape[0] / x.numel(), lambda n: (floats(n, 3),)),
    "a root of a size": Case(lambda x: x * (1 / math.sqrt(x.size(-1))), lambda n: (floats(3, n),)),
    "a size in a shape": Case(lambda x: x.reshape(x.shape[0] * 3).view(3, -1), lambda n: (floats(n, 3),)),
    "halves": Case(lambda x: x[: x.shape[0] // 2] + x[x.shape[0] // 2 :], lambda n: (floats(n, 3),)),
    "the second half": Case(lambda x: x[x.shape[0] // 2 :], lambda n: (floats(n, 3),)),
    "a value and its second half": Case(lambda x: (lambda y: (y, y[y.shape[0] // 2 :]))(x * 2), lambda n: (floats(n),)),
    "chunks": Case(lambda x: x.chunk(2), lambda n: (floats(n),)),
    "the last one": Case(lambda x: (x[-1], x[x.shape[0] - 2]), lambda n: (floats(n, 3),)),
    "zeros of a size": Case(lambda x: torch.zeros(x.shape[0], 2), lambda n: (floats(n),)),
    "full of a size": Case(lambda x: torch.full((2,), x.shape[0]), lambda n: (floats(n),)),
    "a size as a result": Case(lambda x: (x + 1, x.shape[0], x.shape), lambda n: (floats(n),)),
    "an int argument": Case(lambda x, k: x * k, lambda n: (floats(n), n)),
    "an int argument as a place": Case(lambda x, k: x[k], lambda n: (floats(n, 3), n - 1)),
    "an int argument as a size": Case(lambda x, k: x.expand(k, -1), lambda n: (floats(3), n)),
    "a float argument": Case(lambda x, k: x * k, lambda n: (floats(n), n / 3)),
    "a bool argument": Case(lambda x, k: x if k else -x, lambda n: (floats(n), n > 4)),
    "a branch on a size": Case(lambda x: x.sum() if x.shape[0] > 5 else x.mean(), lambda n: (floats(n),)),
    "a loop over a size": Case(lambda x: sum(x[i] for i in range(x.shape[0])), lambda n: (floats(n, 2),)),
    "two sizes": Case(lambda x, y: x[:, None] * y, lambda n: (floats(n), floats(n + 1))),
    "equal sizes": Case(lambda x, y: x + y, lambda n: (floats(n, 2), floats(n, 2))),
    "a matrix product": Case(lambda x, y: x @ y, lambda n: (floats(3, n), floats(n, 2))),
    "attention": Case(
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), lambda n: (floats(1, 2, n, 4),)
    ),
    "a causal mask": Case(
        lambda x: x.masked_fill(torch.ones(x.shape[0], x.shape[0]).triu(1).bool(), -1), lambda n: (floats(n, n),)
    ),
    "a triangle": Case(lambda x: x.tril(-1) + x.triu(1), lambda n: (floats(n, n),)),
    "layer_norm over a size": Case(lambda x: F.layer_norm(x, x.shape[1:]), lambda n: (floats(2, n),)),
    "batch_norm": Case(lambda x: F.batch_norm(x, None, None, training=True), lambda n: (floats(n, 3),)),
    "cross entropy": Case(lambda x, y: F.cross_entropy(x, y), lambda n: (floats(n, 3), below(3, n))),
    "an embedding": Case(lambda w, i: F.embedding(i, w), lambda n: (floats(5, 2), below(5, n))),
    "one_hot": Case(lambda i: F.one_hot(i, 5), lambda n: (below(5, n),)),
    "cat with itself": Case(lambda x: torch.cat([x, x[:-1]]), lambda n: (floats(n, 2),)),
    "repeat by a size": Case(lambda x: x.repeat(x.shape[0]), lambda n: (floats(n),)),
    "roll by a size": Case(lambda x: x.roll(x.shape[0] // 2), lambda n: (floats(n),)),
    "a mask of valid places": Case(
        lambda x, k: x * (torch.arange(x.shape[1]) < k[:, None]), lambda n: (floats(2, n), torch.tensor([2, n - 1]))
    ),
    "where of a mask": Case(lambda x, m: torch.where(m, x, x.shape[0]), lambda n: (floats(n), mask(n))),
    "a reduction over everything": Case(lambda x: (x.sum(), x.mean(), x.amax()), lambda n: (floats(n, n),)),
    "upsampling by a factor": Case(lambda x: F.interpolate(x, scale_factor=1.5), lambda n: (floats(1, 1, n),)),
    "linspace over a size": Case(lambda x: x * torch.linspace(0, 1, x.shape[0]), lambda n: (floats(n),)),
    "eye of a size": Case(lambda x: x + torch.eye(x.shape[0]), lambda n: (floats(n, n),)),
    "written in half": Case(lambda x: x[: x.shape[0] // 2].zero_(), lambda n: (floats(n, 3),)),
    "gradients of a half": Case(
        lambda x: x[x.shape[0] // 2 :].square(), lambda n: (floats(n, 3).requires_grad_(),)
    ),
    "gradients of a product": Case(
        lambda x, y: x @ y, lambda n: (floats(3, n).requires_grad_(), floats(n, 2).requires_grad_())
    ),
    "gradients of a mean": Case(lambda x: x.mean(0) * x.shape[0], lambda n: (floats(n, 3).requires_grad_(),)),
}  # fmt: skip


@both_ways(CASES)
def test_sizes(case: Case, dynamic: bool) -> None:
    check(case, dynamic)
