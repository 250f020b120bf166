"""Control flow in a normalised graph: calls whose arguments include regions.

Each function here is the target of a ``call_function`` node and the reference meaning of it: run on torch tensors,
as the reference interpreter does, it runs its regions node by node. A region's results are one flat tuple of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tpu_lowering import compat
from tpu_lowering.ir import interpreter
from tpu_lowering.ir.regions import Region

Tensors = tuple[torch.Tensor, ...]
REFERENCE_TURNS = 8


def cond(predicate: Any, if_true: Region, if_false: Region, operands: Tensors) -> Tensors:
    """The results of one region or the other. ``predicate``: a bool, or a tensor of one element."""
    return _run(if_true if bool(predicate) else if_false, operands)


def while_loop(condition: Region, body: Region, carried: Tensors, extra: Tensors) -> Tensors:
    """``carried`` after as many times of ``body(*carried, *extra)`` as ``condition(*carried, *extra)`` holds.

    The reference stops after ``REFERENCE_TURNS``: verifying draws arguments at random, with which a loop may not end.
    """
    for _ in range(REFERENCE_TURNS):
        if not bool(_run(condition, (*carried, *extra))[0]):
            break
        carried = _run(body, (*carried, *extra))
    return tuple(value.clone() for value in carried)


def scan(combine: Region, init: Tensors, rows: Tensors, extra: Tensors) -> Tensors:
    """``combine(*carry, *rows[i], *extra) -> (*carry, *ys[i])`` for each i; the last carry, then the stacked ys."""
    carry = init
    steps: list[Tensors] = []
    for index in range(rows[0].shape[0]):
        results = _run(combine, (*carry, *(value[index] for value in rows), *extra))
        carry = results[: len(init)]
        steps.append(results[len(init) :])
    return (*(value.clone() for value in carry), *(torch.stack(column) for column in zip(*steps, strict=True)))


def map_rows(function: Region, rows: Tensors, extra: Tensors) -> Tensors:
    """``function(*rows[i], *extra)`` for each i, stacked."""
    return scan(function, (), rows, extra)


def flex_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score: Region,
    mask: Region,
    scale: float,
    score_extra: Tensors,
    mask_extra: Tensors,
) -> Tensors:
    """Attention with a rule for scores and one for which of them count.

    Args:
        query, key, value: [b, h, m, d], [b, hk, n, d], [b, hk, n, e]; hk divides h, and key and value may have b 1.
        score: ``(score, b, h, m, n, *score_extra) -> (score,)`` of scalars.
        mask: ``(b, h, m, n, *mask_extra) -> (bool,)`` of scalars.
        scale: factor of the scores.

    Returns:
        [b, h, m, e]; the rows' logsumexp and maximum over log(2), float32 [b, h, m].
    """
    results = compat.eager_flex_attention(
        query,
        key,
        value,
        lambda *given: _run(score, given)[0],
        (lambda *given: _run(mask, given)[0],),
        scale,
        {},
        score_extra,
        mask_extra,
    )
    return (results[0], results[1].float(), results[2].float())


def _run(region: Region, operands: Sequence[Any]) -> Tensors:
    return tuple(interpreter.interpret(region.module, operands))


CONTROL_FLOW = (cond, while_loop, scan, map_rows, flex_attention)
