"""Writes at positions: scatter, index_add and their kin, in place and not."""

from __future__ import annotations

import torch

from tests.semantics.arguments import below, floats, ints, mask
from tests.semantics.eager_check import Case, both_ways, check

CASES = {
    "scatter": Case(lambda x, i, s: x.scatter(0, i, s), lambda n: (floats(n, 3), below(n, 2, 3), floats(2, 3))),
    "scatter along the last": Case(
        lambda x, i, s: x.scatter(-1, i, s), lambda n: (floats(3, n), below(n, 3, 2), floats(3, 2))
    ),
    "scatter_ of a number": Case(lambda x, i: x.scatter_(1, i, 7), lambda n: (floats(3, n), below(n, 3, 2))),
    "scatter of a smaller index": Case(
        lambda x, i, s: x.scatter(0, i, s), lambda n: (floats(n, 4), below(n, 2, 2), floats(3, 4))
    ),
    "scatter of integers": Case(lambda x, i, s: x.scatter(0, i, s), lambda n: (ints(n), below(n, 2), ints(2))),
    "scatter into a transposed tensor": Case(
        lambda x, i, s: x.t().scatter(0, i, s), lambda n: (floats(3, n), below(n, 2, 3), floats(2, 3))
    ),
    "scatter_ into a view": Case(
        lambda x, i: x[1:].scatter_(0, i, 3.0), lambda n: (floats(n + 1, 3), below(n, 2, 3))
    ),
    "scatter_add": Case(
        lambda x, i, s: x.scatter_add(0, i, s), lambda n: (floats(n, 3), below(n, 5, 3) // 2, floats(5, 3))
    ),
    "scatter_add_ of integers": Case(
        lambda x, i, s: x.scatter_add_(0, i, s), lambda n: (ints(n), below(n, 5) // 2, ints(5))
    ),
    "scatter with add": Case(
        lambda x, i, s: x.scatter(0, i, s, reduce="add"), lambda n: (floats(n, 3), below(n, 4, 3), floats(4, 3))
    ),
    "scatter with multiply by a number": Case(
        lambda x, i: x.scatter(0, i, 3.0, reduce="multiply"), lambda n: (floats(n, 3), below(n, 4, 3))
    ),
    **{
        f"scatter_reduce {how}, {'with' if kept else 'without'} self": Case(
            lambda x, i, s, how=how, kept=kept: x.scatter_reduce(0, i, s, how, include_self=kept),
            lambda n: (floats(n, 3), below(n, 5, 3) // 2, floats(5, 3)),
        )
        for how in ("sum", "prod", "mean", "amax", "amin")
        for kept in (True, False)
    },
    "scatter_reduce of integers": Case(
        lambda x, i, s: x.scatter_reduce(0, i, s, "amax"), lambda n: (ints(n), below(n, 5) // 2, ints(5))
    ),
    "index_add": Case(lambda x, i, s: x.index_add(0, i, s), lambda n: (floats(n, 3), below(n, 4) // 2, floats(4, 3))),
    "index_add with alpha": Case(
        lambda x, i, s: x.index_add(1, i, s, alpha=-2), lambda n: (floats(3, n), below(n, 4), floats(3, 4))
    ),
    "index_add_ in place": Case(
        lambda x, i, s: x.index_add_(0, i, s), lambda n: (floats(n, 3), below(n, 4), floats(4, 3))
    ),
    "index_copy": Case(lambda x, i, s: x.index_copy(0, i, s), lambda n: (floats(n, 3), below(n, 2), floats(2, 3))),
    "index_copy_ in place": Case(
        lambda x, i, s: x.index_copy_(1, i, s), lambda n: (floats(3, n), below(n, 2), floats(3, 2))
    ),
    "index_fill": Case(lambda x, i: x.index_fill(0, i, -1), lambda n: (floats(n, 3), below(n, 2))),
    "index_fill by a tensor": Case(
        lambda x, i, v: x.index_fill(1, i, v), lambda n: (floats(3, n), below(n, 2), torch.tensor(9.0))
    ),
    "index_reduce prod": Case(
        lambda x, i, s: x.index_reduce(0, i, s, "prod"), lambda n: (floats(n, 3), below(n, 4), floats(4, 3))
    ),
    "index_reduce mean without self": Case(
        lambda x, i, s: x.index_reduce(0, i, s, "mean", include_self=False),
        lambda n: (floats(n, 3), below(n, 4) // 2, floats(4, 3)),
    ),
    "index_put": Case(
        lambda x, i, s: x.index_put((i,), s), lambda n: (floats(n, 3), below(n, 2), floats(2, 3))
    ),
    "index_put that adds": Case(
        lambda x, i, s: x.index_put((i,), s, accumulate=True), lambda n: (floats(n, 3), below(n, 5) // 2, floats(5, 3))
    ),
    "index_put with negative positions": Case(
        lambda x, s: x.index_put((torch.tensor([-1, 0]),), s), lambda n: (floats(n, 3), floats(2, 3))
    ),
    "put": Case(lambda x, i, s: x.put(i, s), lambda n: (floats(n, 3), below(n * 3, 4), floats(4))),
    "put_ that adds": Case(
        lambda x, i, s: x.put_(i, s, accumulate=True), lambda n: (floats(n, 3), below(n, 4) // 2, floats(4))
    ),
    "masked_fill by a 0-d tensor": Case(
        lambda x, m, v: x.masked_fill(m, v), lambda n: (floats(n, 3), mask(n, 3), torch.tensor(2.0))
    ),
    "masked_fill of a broadcast mask": Case(lambda x, m: x.masked_fill(m, 0), lambda n: (floats(3, n), mask(n))),
    "masked_scatter_": Case(
        lambda x, m, s: x.masked_scatter_(m, s), lambda n: (floats(n, 3), mask(n, 3), floats(n * 3))
    ),
    "select_scatter": Case(lambda x, s: x.select_scatter(s, 0, -1), lambda n: (floats(n, 3), floats(3))),
    "slice_scatter": Case(
        lambda x, s: x.slice_scatter(s, 0, 1, None, 2), lambda n: (floats(n, 3), floats(n // 2, 3))
    ),
    "diagonal_scatter": Case(lambda x, s: x.diagonal_scatter(s, 1), lambda n: (floats(n, n), floats(n - 1))),
    "gradients of scatter": Case(
        lambda x, i, s: x.scatter(0, i, s) * 2,
        lambda n: (floats(n, 3).requires_grad_(), below(n, 2, 3), floats(2, 3).requires_grad_()),
    ),
    "gradients of scatter_add": Case(
        lambda x, i, s: x.scatter_add(0, i, s).square(),
        lambda n: (floats(n, 3).requires_grad_(), below(n, 5, 3) // 2, floats(5, 3).requires_grad_()),
    ),
    "gradients of index_put": Case(
        lambda x, i, s: x.index_put((i,), s).square(),
        lambda n: (floats(n, 3).requires_grad_(), below(n, 2), floats(2, 3).requires_grad_()),
    ),
    "gradients of gather": Case(
        lambda x, i: x.gather(0, i).square(), lambda n: (floats(n, 3).requires_grad_(), below(n, 2, 3))
    ),
}  # fmt: skip


@both_ways(CASES)
def test_scatters(case: Case, dynamic: bool) -> None:
    check(case, dynamic)
