"""Order: sorting, the largest few, ties and NaN; searching; running extremes; reductions along dimensions."""

from __future__ import annotations

import torch

from tests.semantics.arguments import below, floats, ints, mask
from tests.semantics.eager_check import Case, both_ways, check

NAN = torch.nan


def holes(n: int) -> torch.Tensor:
    """Numbers with NaN among them."""
    return floats(n, 3).masked_fill(floats(n, 3) > 1.2, NAN)


def ties(n: int) -> torch.Tensor:
    return below(3, n, 3).float()


CASES = {
    "sort": Case(lambda x: x.sort(), lambda n: (floats(n, 3),)),
    "sort along the first": Case(lambda x: x.sort(0), lambda n: (floats(n, 3),)),
    "sort downwards": Case(lambda x: x.sort(0, descending=True), lambda n: (floats(n, 3),)),
    "stable sort of ties": Case(lambda x: x.sort(dim=0, stable=True), lambda n: (ties(n),)),
    "stable sort of ties, downwards": Case(lambda x: x.sort(dim=0, stable=True, descending=True), lambda n: (ties(n),)),
    "sort of NaN": Case(lambda x: x.sort(dim=0, stable=True), lambda n: (holes(n),)),
    "sort of NaN, downwards": Case(lambda x: x.sort(dim=0, stable=True, descending=True), lambda n: (holes(n),)),
    "sort of bools": Case(lambda x: x.sort(stable=True), lambda n: (mask(n),)),
    "sort of bfloat16": Case(lambda x: x.sort(0), lambda n: (floats(n, 3).bfloat16(),)),
    "sort of a transposed tensor": Case(lambda x: x.t().sort(1), lambda n: (floats(n, 3),)),
    "sort of a 0-d tensor": Case(lambda x: x.sum().sort(), lambda n: (floats(n),)),
    "argsort": Case(lambda x: x.argsort(0), lambda n: (floats(n, 3),)),
    "msort": Case(lambda x: x.msort(), lambda n: (floats(n, 3),)),
    "topk": Case(lambda x: x.topk(2, 0), lambda n: (floats(n, 3),)),
    "topk of the smallest": Case(lambda x: x.topk(2, 0, largest=False), lambda n: (floats(n, 3),)),
    "topk of NaN": Case(lambda x: x.topk(3, 0).values, lambda n: (holes(n),)),
    "topk of all": Case(lambda x: x.topk(x.shape[0], 0), lambda n: (floats(n, 3),)),
    "kthvalue": Case(lambda x: x.kthvalue(2, 0), lambda n: (floats(n, 3),)),
    "kthvalue, kept": Case(lambda x: x.kthvalue(1, 0, keepdim=True), lambda n: (floats(n, 3),)),
    "median": Case(lambda x: (x.median(), x.median(0)), lambda n: (floats(n, 3),)),
    "median of NaN": Case(lambda x: (x.median(), x.nanmedian()), lambda n: (holes(n),)),
    "mode": Case(lambda x: x.mode(0).values, lambda n: (ties(n),)),
    "quantile": Case(lambda x: x.quantile(0.3, 0), lambda n: (floats(n, 3),)),
    "quantile of NaN": Case(lambda x: (x.quantile(0.5), x.nanquantile(0.5)), lambda n: (holes(n),)),
    "searchsorted": Case(
        lambda x, y: (torch.searchsorted(x.sort().values, y), torch.searchsorted(x.sort().values, y, right=True)),
        lambda n: (floats(n), floats(3)),
    ),
    "searchsorted by rows, as int32": Case(
        lambda x, y: torch.searchsorted(x.sort(1).values, y, out_int32=True), lambda n: (floats(2, n), floats(2, 3))
    ),
    "bucketize": Case(lambda x: torch.bucketize(x, torch.tensor([-1.0, 0, 1])), lambda n: (floats(n, 3),)),
    "isin": Case(lambda x, y: torch.isin(x, y), lambda n: (ints(n), ints(2))),
    "max along a dimension": Case(lambda x: (x.max(0), x.max(1, keepdim=True)), lambda n: (ties(n),)),
    "min of NaN along a dimension": Case(lambda x: x.min(0), lambda n: (holes(n),)),
    "argmax of ties": Case(lambda x: (x.argmax(), x.argmax(0), x.argmin(0, keepdim=True)), lambda n: (ties(n),)),
    "argmax of NaN": Case(lambda x: (x.argmax(0), x.argmin()), lambda n: (holes(n),)),
    "amax and amin": Case(lambda x: (x.amax(0), x.amin((0, 1)), x.aminmax()), lambda n: (floats(n, 3),)),
    "max of nothing is refused": Case(lambda x: x[:0].max(), lambda n: (floats(n),)),
    "cummax": Case(lambda x: x.cummax(0), lambda n: (ties(n),)),
    "cummin of NaN": Case(lambda x: x.cummin(0), lambda n: (holes(n),)),
    "cumsum and cumprod": Case(lambda x: (x.cumsum(0), x.cumprod(1)), lambda n: (ints(n, 3),)),
    "logcumsumexp": Case(lambda x: x.logcumsumexp(0), lambda n: (floats(n, 3),)),
    "diff": Case(lambda x: x.diff(dim=0, n=2), lambda n: (floats(n, 3),)),
    "unique is refused or right": Case(lambda x: x.sort().values.diff().ne(0).sum(), lambda n: (ints(n),)),
    "histc": Case(lambda x: x.histc(4, -2, 2), lambda n: (floats(n, 3),)),
    "bincount with a fixed length": Case(
        lambda x: torch.zeros(5).index_add(0, x, torch.ones(x.shape[0])), lambda n: (below(5, n),)
    ),
    "any and all": Case(lambda x: (x.any(), x.all(0), x.any(1, keepdim=True)), lambda n: (mask(n, 3),)),
    "any of floats": Case(lambda x: (x.any(), (x * 0).all(1)), lambda n: (floats(n, 3),)),
    "count_nonzero": Case(lambda x: (x.count_nonzero(), x.count_nonzero(0)), lambda n: (ints(n, 3),)),
    "variance": Case(lambda x: (x.var(0), x.std(), torch.var_mean(x, 1, correction=0)), lambda n: (floats(n, 3),)),
    "norms": Case(lambda x: (x.norm(), x.norm(1, 0), x.norm(float("inf"), 1)), lambda n: (floats(n, 3),)),
    "logsumexp": Case(lambda x: x.logsumexp((0, 1)), lambda n: (floats(n, 3),)),
    "softmax of a hidden row": Case(
        lambda x: x.masked_fill(x < 9, -torch.inf).softmax(1), lambda n: (floats(n, 3),)
    ),
    "gradients of sort": Case(
        lambda x: x.sort(0).values * torch.arange(x.shape[0])[:, None], lambda n: (floats(n, 3).requires_grad_(),)
    ),
    "gradients of topk": Case(lambda x: x.topk(2, 0).values.square(), lambda n: (floats(n, 3).requires_grad_(),)),
    "gradients of max": Case(lambda x: x.max(0).values.square(), lambda n: (ties(n).requires_grad_(),)),
    "gradients of amax with ties": Case(lambda x: x.amax(0).square(), lambda n: (ties(n).requires_grad_(),)),
    "gradients of median": Case(lambda x: x.median(0).values.square(), lambda n: (floats(n, 3).requires_grad_(),)),
}  # fmt: skip


@both_ways(CASES)
def test_order(case: Case, dynamic: bool) -> None:
    check(case, dynamic)
