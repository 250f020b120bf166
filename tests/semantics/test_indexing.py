"""Reading and writing by positions and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.semantics.arguments import below, floats, ints, mask, only
from tests.semantics.eager_check import Case, both_ways, check

aten = torch.ops.aten


def stored(index: Callable[..., Any], value: Callable[..., Any] | float = 5.0) -> Callable[..., Any]:
    """A function that stores under an index, in place, in its first argument."""

    def store(a: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        a[index(*others)] = value(*others) if callable(value) else value
        return a * 1

    return store


def added(*places: int | None) -> Callable[..., Any]:
    """A function that adds its second argument to the first, at those of the others that are named."""

    def add(a: torch.Tensor, values: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return aten.index_put(a, [None if at is None else others[at] for at in places], values, True)

    return add


ALL = slice(None)

READS = {
    "positions": Case(lambda a, i: a[i], lambda n: (floats(n, 3), below(n, 2))),
    "negative positions": Case(lambda a, i: a[i], lambda n: (floats(n, 3), torch.tensor([-1, 0, -n]))),
    "positions of two dimensions": Case(lambda a, i: a[i], lambda n: (floats(n, 3), below(n, 2, 2))),
    "two tensors of positions": Case(lambda a, i, j: a[i, j], lambda n: (floats(n, 3), below(n, 3), below(3, 3))),
    "tensors that are broadcast": Case(lambda a, i, j: a[i, j], lambda n: (floats(n, 3), below(n, 2, 1), below(3, 3))),
    "apart": Case(lambda a, i, j: a[i, :, j], lambda n: (floats(n, 2, 3), below(n, 2), below(3, 2))),
    "in the middle": Case(lambda a, i: a[:, i], lambda n: (floats(2, n, 3), below(n, 3))),
    "last": Case(lambda a, i: a[..., i], lambda n: (floats(2, 3, n), below(n, 3))),
    "a new dimension": Case(lambda a, i: a[None, i], lambda n: (floats(n, 3), below(n, 3))),
    "an integer beside a tensor": Case(lambda a, i: a[1, i], lambda n: (floats(3, n, 2), below(n, 3))),
    "a slice beside a tensor": Case(lambda a, i: a[1:3, i], lambda n: (floats(n, 4, 2), below(4, 3))),
    "0-d positions": Case(lambda a, i: aten.index(a, [i]), lambda n: (floats(n, 3), torch.tensor(2))),
    "int32 positions": Case(lambda a, i: a[i], lambda n: (floats(n, 3), below(n, 3).int())),
    "no positions": Case(lambda a, i: a[i], lambda n: (floats(n, 3), below(n, 0))),
    "of a transposed tensor": Case(lambda a, i: a.t()[i], lambda n: (floats(3, n), below(n, 3))),
    "of an expanded tensor": Case(lambda a, i: a.expand(3, -1)[:, i], lambda n: (floats(n), below(n, 2))),
    "a list": Case(lambda a: a[[2, 0]], lambda n: (floats(n, 3),)),
    "index_select": Case(lambda a, i: a.index_select(1, i), lambda n: (floats(3, n), below(n, 2))),
    "index_select of a 0-d tensor": Case(lambda a: a.index_select(0, torch.zeros(1).long()), lambda n: (floats(),)),
    "gather": Case(lambda a, i: a.gather(1, i), lambda n: (floats(3, n), below(n, 2, 2))),
    "gather by transposed positions": Case(lambda a, i: a.gather(0, i.t()), lambda n: (floats(n, 3), below(n, 3, 2))),
    "take": Case(lambda a, i: a.take(i), lambda n: (floats(n, 3), below(n * 3, 2, 2) - n * 3)),
    "take_along_dim": Case(lambda a, i: a.take_along_dim(i, 0), lambda n: (floats(n, 3), below(n, 2, 1))),
    "where with three arguments": Case(lambda a, m: torch.where(m, a, -a), lambda n: (floats(n), mask(n))),
    "embedding": Case(torch.embedding, lambda n: (floats(n, 3), below(n, 2, 2))),
    "repeat_interleave by a number": Case(lambda a: a.repeat_interleave(2, 0), lambda n: (floats(n, 3),)),
    "a slice with a step": Case(lambda a: a[1::2, ::3], lambda n: (floats(n, 4),)),
    "slices beyond the ends": Case(lambda a: (a[2:99], a[-99:2], a[3:1]), lambda n: (floats(n),)),
}

MASKED_WRITES = {
    "a mask": Case(stored(lambda m: m), lambda n: (floats(n, 3), mask(n))),
    "a mask of all dimensions": Case(stored(lambda m: m), lambda n: (floats(n, 3), mask(n, 3))),
    "a mask of the last dimension": Case(stored(lambda m: (ALL, m)), lambda n: (floats(3, n), mask(n))),
    "a mask in the middle": Case(stored(lambda m: (ALL, m)), lambda n: (floats(2, n, 3), mask(n))),
    "a mask of two dimensions, later": Case(stored(lambda m: (ALL, m)), lambda n: (floats(2, n, 3), mask(n, 3))),
    "a row for a mask": Case(stored(lambda m, v: m, lambda m, v: v), lambda n: (floats(n, 3), mask(n), floats(3))),
    "rows for a mask": Case(
        stored(lambda m, v: m, lambda m, v: v), lambda n: (floats(n, 3), only(n, 0, 3), floats(2, 3))
    ),
    "columns for a mask": Case(
        stored(lambda m, v: (ALL, m), lambda m, v: v), lambda n: (floats(5, n), only(n, 0, 3), floats(5, 2))
    ),
    "one value for each row of a mask": Case(
        stored(lambda m, v: (ALL, m), lambda m, v: v), lambda n: (floats(5, n), mask(n), floats(5, 1))
    ),
    "values for a mask in the middle": Case(
        stored(lambda m, v: (ALL, m), lambda m, v: v), lambda n: (floats(2, n, 3), only(n, 1, 2, 3), floats(3, 3))
    ),
    "values for a mask of two dimensions": Case(
        stored(lambda m, v: m, lambda m, v: v),
        lambda n: (floats(n, 2), mask(4, 2)[[0, 1, 2, 3] * 2][:n], floats(n * 2 * 3 // 4)),
    ),
    "a mask that holds nowhere": Case(stored(lambda m: m), lambda n: (floats(n, 3), only(n))),
    "no values": Case(stored(lambda m, v: m, lambda m, v: v), lambda n: (floats(n, 3), only(n), floats(0, 3))),
    "a mask of uint8": Case(
        lambda a, m: aten.index_put(a, [m], torch.tensor(5.0)), lambda n: (floats(n, 3), mask(n).byte())
    ),
    "masks that do not fit": Case(
        lambda a, m, k: aten.index_put(a, [m, k], torch.tensor(1.0)), lambda n: (floats(n, n), mask(n + 1), mask(n))
    ),
    "mask, positions": Case(stored(lambda m, i: (m, i)), lambda n: (floats(n, 4), only(n, 0, 3), below(4, 2))),
    "positions, mask": Case(stored(lambda m, i: (i, m)), lambda n: (floats(4, n), only(n, 0, 3), below(4, 2))),
    "mask, one position": Case(stored(lambda m, i: (m, i)), lambda n: (floats(n, 4), mask(n), below(4, 1))),
    "mask, 0-d position": Case(
        lambda a, m, i: aten.index_put_(a, [m, i], torch.tensor(5.0)),
        lambda n: (floats(n, 4), mask(n), torch.tensor(-1)),
    ),
    "mask, integer": Case(stored(lambda m: (m, -1)), lambda n: (floats(n, 4), mask(n))),
    "integer, mask": Case(stored(lambda m: (2, m)), lambda n: (floats(4, n), mask(n))),
    "mask, slice, positions": Case(
        stored(lambda m, i: (m, ALL, i)), lambda n: (floats(n, 2, 4), only(n, 0, 3), below(4, 2))
    ),
    "positions, slice, mask": Case(
        stored(lambda m, i: (i, ALL, m)), lambda n: (floats(4, 2, n), only(n, 0, 3), below(4, 2))
    ),
    "slice, mask, positions": Case(
        stored(lambda m, i: (ALL, m, i)), lambda n: (floats(2, n, 4), only(n, 1, 2), below(4, 2))
    ),
    "a mask of one, many positions": Case(
        stored(lambda m, i: (m, i)), lambda n: (floats(n, 4), only(n, 2), below(4, 3))
    ),
    "a mask, a table of positions": Case(
        stored(lambda m, i: (m, i)), lambda n: (floats(n, 4), only(n, 0, 2), below(4, 2, 1))
    ),
    "a mask of two dimensions, positions": Case(
        stored(lambda m, i: (m, i)), lambda n: (floats(3, n, 4), only(3 * n, 1, n).reshape(3, n), below(4, 2))
    ),
    "values at mask, positions": Case(
        stored(lambda m, i, v: (m, i), lambda m, i, v: v),
        lambda n: (floats(n, 4, 2), only(n, 1, 2), below(4, 2), floats(2, 2)),
    ),
    "values at mask, slice, positions": Case(
        stored(lambda m, i, v: (m, ALL, i), lambda m, i, v: v),
        lambda n: (floats(n, 3, 4), only(n, 1, 2), below(4, 2), floats(2, 3)),
    ),
    "values at mask, one position": Case(
        stored(lambda m, i, v: (m, i), lambda m, i, v: v),
        lambda n: (floats(n, 4), only(n, 0, 2, 3), below(4, 1), floats(3)),
    ),
    "two masks": Case(stored(lambda m, k: (m, k)), lambda n: (floats(n, n), only(n, 0, 2), only(n, 1, 3))),
    "one mask twice": Case(stored(lambda m: (m, m)), lambda n: (floats(n, n), mask(n))),
    "two masks, one with one place": Case(
        stored(lambda m, k: (m, k)), lambda n: (floats(n, n), only(n, 0, 2, 3), only(n, 1))
    ),
    "two masks, one holds nowhere": Case(stored(lambda m, k: (m, k)), lambda n: (floats(n, n), only(n), only(n, 1))),
    "two masks with a slice between": Case(
        stored(lambda m, k: (m, ALL, k)), lambda n: (floats(n, 2, n), only(n, 0, 2), only(n, 1, 3))
    ),
    "two masks and values": Case(
        stored(lambda m, k, v: (m, k), lambda m, k, v: v),
        lambda n: (floats(n, n), only(n, 0, 2), only(n, 1, 3), floats(2)),
    ),
    "added at mask, positions": Case(
        added(0, 1), lambda n: (floats(n, 4), torch.tensor(1.0), only(n, 1, 2), below(4, 2))
    ),
    "added at a mask": Case(added(None, 0), lambda n: (floats(2, n), torch.tensor(1.0), mask(n))),
    "added twice": Case(
        added(0, 1), lambda n: (floats(n, 4), floats(2, 2), only(n, 1, 2), torch.tensor([[0, 1], [0, 1]]))
    ),
    "added to bools": Case(added(0, 1), lambda n: (mask(n, 4), torch.tensor(True), only(n, 1, 2), below(4, 2))),
    "added to bfloat16": Case(added(0), lambda n: (floats(n, 2).bfloat16(), floats(2, 2).bfloat16(), only(n, 1, 2))),
    "in place, under a view": Case(
        lambda a, m: a[1:].index_put_((m,), torch.tensor(3.0)), lambda n: (floats(n + 1, 2), mask(n))
    ),
    "to integers": Case(stored(lambda m, i: (m, i), 2), lambda n: (ints(n, 4), only(n, 0, 3), below(4, 2))),
    "masked_fill_": Case(lambda a, m: a.masked_fill_(m, 2), lambda n: (floats(3, n), mask(n))),
    "masked_scatter": Case(torch.masked_scatter, lambda n: (floats(3, n), mask(3, n), floats(3 * n))),
}


@both_ways(READS)
def test_reads(case: Case, dynamic: bool) -> None:
    check(case, dynamic)


@both_ways(MASKED_WRITES)
def test_writes_under_masks(case: Case, dynamic: bool) -> None:
    check(case, dynamic)
