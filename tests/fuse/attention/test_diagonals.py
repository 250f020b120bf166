"""Masks found by their arithmetic hold what the arithmetic gives."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import masking_utils

from tpu_lowering.fuse.attention.diagonals import Varying, varying
from tpu_lowering.fuse.attention.masks import MOST, StaticMask, Term, split

SIZES = ((6, 6), (5, 9), (9, 5), (1, 7), (7, 1))
Function = Callable[[int, int], torch.Tensor]


def result_of(function: Callable[[], torch.Tensor]) -> fx.Node:
    """The node of what a function gives, in a graph of ATen operators."""
    module = make_fx(function, tracing_mode="fake")()
    (node,) = module.graph.output_node().all_input_nodes
    return node


def written(found: Varying, shape: torch.Size) -> torch.Tensor:
    """All elements of what was found."""
    values, dims = found.values, [dim % len(shape) for dim in found.dims]
    if len(dims) < 2:
        sizes = [size if at in dims else 1 for at, size in enumerate(shape)]
        return values.reshape(sizes).expand(shape)
    rows, columns = (
        torch.arange(shape[dim]).reshape([-1 if at == dim else 1 for at in range(len(shape))]) for dim in dims
    )
    return values[columns - rows + shape[dims[0]] - 1].expand(shape)


def places(queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(queries)[:, None], torch.arange(keys)[None, :]


def causal(queries: int, keys: int) -> torch.Tensor:
    i, j = places(queries, keys)
    return j <= i


def window(queries: int, keys: int) -> torch.Tensor:
    i, j = places(queries, keys)
    return (j <= i) & (j > i - 3)


def both_sides(queries: int, keys: int) -> torch.Tensor:
    i, j = places(queries, keys)
    return (i - j).abs() <= 2


def triangles(queries: int, keys: int) -> torch.Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(1).triu(-2)


def added(queries: int, keys: int) -> torch.Tensor:
    hidden = torch.full((queries, keys), torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16)
    return torch.triu(hidden, 1)[None, None]


def filled(queries: int, keys: int) -> torch.Tensor:
    return torch.zeros(queries, keys).masked_fill(~triangles(queries, keys), -math.inf)


def two_bands(queries: int, keys: int) -> torch.Tensor:
    i, j = places(queries, keys)
    return (j == i) | (j - i > 1)


def later_queries(queries: int, keys: int) -> torch.Tensor:
    """The queries are the last of all tokens; each sees the keys up to its own."""
    i, j = places(queries, keys)
    return j <= i + (keys - queries)


def by_transformers(function: Callable[..., bool]) -> Function:
    def made(queries: int, keys: int) -> torch.Tensor:
        mask = masking_utils.sdpa_mask(2, queries, keys, mask_function=function, allow_is_causal_skip=False)
        assert mask is not None
        return mask

    return made


FOUND: dict[str, Function] = {
    **{one.__name__: one for one in (causal, window, both_sides, triangles, added, filled, two_bands, later_queries)},
    "transformers_causal": by_transformers(masking_utils.causal_mask_function),
    "transformers_window": by_transformers(masking_utils.sliding_window_causal_mask_function(3)),
    "transformers_both_sides": by_transformers(masking_utils.sliding_window_bidirectional_mask_function(2)),
    "transformers_all": by_transformers(masking_utils.bidirectional_mask_function),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", FOUND)
def test_what_is_found_is_what_is_computed(name: str, sizes: tuple[int, int]) -> None:
    node = result_of(lambda: FOUND[name](*sizes))
    found = varying(node, {})
    if found is None:
        assert 1 in sizes, "a line of one element has no direction"
        return
    assert torch.equal(written(found, node.meta["val"].shape), FOUND[name](*sizes))


def every_other(queries: int, keys: int) -> torch.Tensor:
    i, j = places(queries, keys)
    return j * 2 <= i


def chunks(queries: int, keys: int) -> torch.Tensor:
    i, j = places(queries, keys)
    return (i // 3 == j // 3) & (j <= i)


def products(queries: int, keys: int) -> torch.Tensor:
    i, j = places(queries, keys)
    return i * j > 3


def drawn(queries: int, keys: int) -> torch.Tensor:
    return causal(queries, keys) & (torch.rand(queries, keys) > 0.5)


def of_three_dimensions(queries: int, keys: int) -> torch.Tensor:
    i, j = places(queries, keys)
    return (j <= i)[None] & (torch.arange(4)[:, None, None] >= j)


def flattened(queries: int, keys: int) -> torch.Tensor:
    return causal(queries, keys).reshape(-1)


@pytest.mark.parametrize("function", [every_other, chunks, products, drawn, of_three_dimensions, flattened])
def test_what_is_of_no_diagonal_is_not_found(function: Function) -> None:
    assert varying(result_of(lambda: function(6, 8)), {}) is None


def some_mask(choose: random.Random, queries: int, keys: int) -> torch.Tensor:
    """A random tensor of bools over queries and keys, of comparisons, triangles, views and what combines them."""
    i, j = places(queries, keys)

    def leaf() -> torch.Tensor:
        more = choose.randrange(-4, 5)
        kind = choose.randrange(6)
        if kind == 0:
            compare = choose.choice((torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne))
            return compare(j + more, i) if choose.random() < 0.5 else compare(i - more, j)
        if kind == 1:
            ones = torch.ones(queries, keys, dtype=torch.bool)
            return ones.tril(more) if choose.random() < 0.5 else ones.triu(more)
        if kind == 2:
            return (i - j).abs() > more
        if kind == 3:
            return choose.choice((i, j)) >= choose.choice((0, more))
        if kind == 4:
            return (2 * j - 2 * i + more).clamp(-3, 2) > 0
        longer_i, longer_j = places(queries + 2, keys + 3)
        return (longer_j <= longer_i + more)[1 : queries + 1, 2 : keys + 2]

    def node(depth: int) -> torch.Tensor:
        if depth == 0 or choose.random() < 0.2:
            return leaf()
        match choose.randrange(6):
            case 0:
                return node(depth - 1) & node(depth - 1)
            case 1:
                return node(depth - 1) | node(depth - 1)
            case 2:
                return ~node(depth - 1)
            case 3:
                return node(depth - 1)[None, None].expand(2, 1, -1, -1)[0, 0]
            case 4:
                return torch.where(node(depth - 1), 0.0, -math.inf) == 0
            case _:
                return node(depth - 1) ^ node(depth - 1)

    return node(3).expand(queries, keys)


def test_random_masks() -> None:
    found = 0
    for seed in range(200):
        sizes = random.Random(seed).choice(SIZES[:3])
        node = result_of(functools.partial(some_mask, random.Random(seed), *sizes))
        one = varying(node, {})
        if one is not None:
            found += 1
            assert torch.equal(written(one, node.meta["val"].shape), some_mask(random.Random(seed), *sizes)), seed
    assert found > 100


def test_random_masks_are_the_masks_of_their_elements() -> None:
    """The mask of a term, from its diagonals, is that of all its elements."""
    compared = 0
    for seed in range(200):
        sizes = random.Random(seed).choice(SIZES[:3])
        node = result_of(functools.partial(some_mask, random.Random(seed), *sizes))
        seen = some_mask(random.Random(seed), *sizes).numpy()
        mask, rest = split([Term(node, -math.inf, where=False)], False, *sizes, 1, {})
        if rest:
            assert not seen.any(axis=1).all()
            continue
        compared += 1
        assert np.array_equal(seen, np.ones(sizes, bool) if mask is None else mask.array)
        assert mask is None or mask == StaticMask.of(seen)
    assert compared > 50


@pytest.mark.parametrize("length", [16384, 32768, 131072])
def test_large_masks_are_bands(length: int) -> None:
    def near() -> torch.Tensor:
        i, j = places(length, length)
        return (j <= i) & (j > i - 4096)

    assert length * length > MOST
    mask, rest = split([Term(result_of(near), -math.inf, where=False)], False, length, length, 1, {})
    assert mask == StaticMask(length, length, b"", -4095, 0) and rest == ()
    assert mask.seen == 4096 * length - 4096 * 4095 // 2
