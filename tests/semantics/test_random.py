"""Random numbers: eager's own with ``random="torch"``, in values, types, strides and the generator's later state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from tests.semantics.arguments import floats
from tests.semantics.eager_check import Case, both_ways, check


def drawn(function: Callable[..., Any], *shape: int, **kwargs: Any) -> Case:
    """A case that draws as eager does."""
    return Case(function, lambda n: (floats(n, *(shape or (3,)), **kwargs),), {"random": "torch"})


CASES = {
    "rand": drawn(lambda x: torch.rand(x.shape[0], 3)),
    "randn": drawn(lambda x: torch.randn(x.shape[0], 3)),
    "rand_like": drawn(lambda x: torch.rand_like(x)),
    "randn_like of a transposed tensor": drawn(lambda x: torch.randn_like(x.t())),
    "rand of float64": drawn(lambda x: torch.rand(x.shape[0], dtype=torch.float64)),
    "randn of bfloat16": drawn(lambda x: torch.randn(x.shape[0], dtype=torch.bfloat16)),
    "randint": drawn(lambda x: torch.randint(-2, 9, (x.shape[0],))),
    "randint_like": drawn(lambda x: torch.randint_like(x, 5)),
    "randperm": drawn(lambda x: torch.randperm(x.shape[0])),
    "normal": drawn(lambda x: torch.normal(1.0, 2.0, (x.shape[0],))),
    "normal_": drawn(lambda x: x.normal_(1, 2)),
    "uniform_": drawn(lambda x: x.uniform_(-1, 3)),
    "exponential_": drawn(lambda x: x.exponential_(2)),
    "bernoulli_": drawn(lambda x: x.bernoulli_(0.4)),
    "dropout": drawn(lambda x: F.dropout(x, 0.4)),
    "dropout, not in training": drawn(lambda x: F.dropout(x, 0.4, training=False) * 2),
    "dropout twice": drawn(lambda x: F.dropout(F.dropout(x, 0.2), 0.2)),
    "dropout of channels": drawn(lambda x: F.dropout1d(x, 0.5), 3, 4),
    "two draws": drawn(lambda x: (torch.rand(x.shape[0]), torch.randn(3))),
    "a draw, then a sort": drawn(lambda x: torch.rand(x.shape[0]).sort().values * x[:, 0]),
}  # fmt: skip


@both_ways(CASES)
def test_draws(case: Case, dynamic: bool) -> None:
    check(case, dynamic)
