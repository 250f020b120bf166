"""The lowering table: one row for each ATen overload, from the overload to a JAX function.

A row's function takes the operator's arguments in schema order, with JAX arrays in place of tensors,
and one more keyword, ``out``: the ``TensorType`` of the result, or a tuple of them for an operator with
several results (``None`` in the place of a result that is not a tensor). Its products of float32 are exact, see
``lower.precision``; a row whose products are the user's takes ``precision`` too. It returns a JAX array, or a
tuple of them, of exactly that type; ``codegen`` writes the call and the type on one line::

    add = aten.add(mul, 1, out=f32[256, 1024])

Functions are pure and traceable. Semantics are torch's, not NumPy's, wherever the two differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import fx

from tpu_lowering import compat
from tpu_lowering.lower.precision import Multiplies, exact

Rule = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a row of the table takes, where that is less than the overload does.

    Attributes:
        holds: whether a call is within it.
        words: of a call that is not, "expected X, got Y".
    """

    holds: Callable[[fx.Node], bool]
    words: Callable[[fx.Node], str]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        overload: the ATen overload, such as ``aten.add.Tensor``.
        rule: the JAX function.
        name: the name generated code calls it by, unique for each rule function.
        multiplies: what its products are, if they are the user's.
        limit: which calls it takes; None for all.
    """

    overload: compat.OpOverload
    rule: Rule
    name: str
    multiplies: Multiplies = ""
    limit: Limit | None = None


TABLE: dict[compat.OpOverload, Row] = {}
DRAWS: dict[compat.OpOverload, Row] = {}
RULES: dict[str, Rule] = {}


def lowers(
    *overloads: compat.OpOverload, multiplies: Multiplies = "", limit: Limit | None = None
) -> Callable[[Rule], Rule]:
    """Enters a JAX function into the table for one or more overloads.

    The function's own name, less a trailing underscore, is what generated code calls it. ``multiplies`` says what its
    products are, if they are the user's or their gradients; others are exact. ``limit`` says which calls it takes, if
    not all. An overload that the installed torch lacks (``compat.aten`` gives an ``Absent``) is no row.

    Raises:
        KeyError: an overload or a name is in the table already.
    """

    def enter(rule: Rule) -> Rule:
        name = rule.__name__.rstrip("_")
        if name in RULES:
            raise KeyError(f"expected a new rule name, got {name!r} a second time")
        RULES[name] = computed = exact(rule, multiplies)
        for overload in filter(None, overloads):
            if overload in TABLE:
                raise KeyError(f"expected one rule for {overload}, got {TABLE[overload].name} and {name}")
            TABLE[overload] = Row(overload, computed, name, multiplies, limit)
        return rule

    return enter


def draws(overload: compat.OpOverload) -> Callable[[Rule], Rule]:
    """Enters a JAX function for a random operator; it takes a key first. See ``ir.random.draw``.

    Raises:
        KeyError: the overload or the function's name is in the table already.
    """

    def enter(rule: Rule) -> Rule:
        if overload in DRAWS or rule.__name__ in RULES:
            raise KeyError(f"expected one rule for {overload} with a name of its own, got {rule.__name__!r}")
        RULES[rule.__name__] = exact(rule)
        if overload:
            DRAWS[overload] = Row(overload, RULES[rule.__name__], rule.__name__)
        return rule

    return enter
