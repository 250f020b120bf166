"""What the table holds: every core ATen operator, nothing that no graph can contain, rules that fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tpu_lowering.lower.aten  # noqa: F401  (enters the rows)
from tpu_lowering.lower.table import DRAWS, RULES, TABLE
from tpu_lowering.normalise import randomness
from tpu_lowering.normalise.decompositions import ADDED, KEPT, decompositions

aten = torch.ops.aten

ON_DATA = "the result's shape or value in Python depends on data"
SYMBOLIC = "graphs are specialised to concrete sizes before lowering"
MUTATES = "writes to an argument: functionalising replaces it"

CORE_WITHOUT_ROW = {
    aten._local_scalar_dense.default: ON_DATA,
    aten._native_batch_norm_legit.default: MUTATES,
    aten.atan2.out: MUTATES,
    aten.nonzero.default: ON_DATA,
    aten.resize_.default: MUTATES,
    aten.sym_numel.default: SYMBOLIC,
    aten.sym_storage_offset.default: SYMBOLIC,
}

FACTORY = ("generator", "dtype", "layout", "device", "pin_memory")

BACKWARD_OF_COMPOSITE = "composite by name, but autograd calls it below the level where composites are taken apart"
COMPOSITE_WITH_ROW = {
    aten.reshape.default: "normalising writes it for views of kernels' operands",
    aten.silu_backward.default: BACKWARD_OF_COMPOSITE,
}


WRITTEN_LATER = {aten.true_divide.Tensor, aten.square.default}
"""Torch writes them where a Python number became a tensor, after everything was taken apart."""


def _core_overloads() -> set[torch._ops.OpOverload]:
    """All ATen overloads tagged as core; by their schemas, because ``dir(aten)`` lists only what was used before."""
    names = {
        schema.name.partition("::")[2] for schema in torch._C._jit_get_all_schemas() if schema.name[:6] == "aten::"
    }
    packets = [getattr(aten, name) for name in sorted(names) if hasattr(aten, name)]
    overloads = (getattr(packet, name) for packet in packets for name in packet.overloads())
    return {overload for overload in overloads if torch.Tag.core in overload.tags}


def test_every_core_operator_has_a_row_or_a_decomposition_or_a_reason() -> None:
    covered = TABLE.keys() | decompositions().keys() | randomness.OPERATORS
    assert _core_overloads() - covered == set(CORE_WITHOUT_ROW)


def test_no_row_is_shadowed_by_a_decomposition() -> None:
    assert TABLE.keys() & decompositions().keys() == WRITTEN_LATER


def test_every_operator_kept_whole_has_a_row() -> None:
    kept = [overload for overloads in KEPT.values() for overload in overloads]
    assert len(kept) == len(set(kept))
    assert set(kept) - TABLE.keys() == set()


def test_every_added_decomposition_exists() -> None:
    added = {overload for overloads in ADDED.values() for overload in overloads}
    assert added - decompositions().keys() == set()


def test_no_row_is_for_an_operator_that_writes() -> None:
    assert [overload for overload in TABLE if overload._schema.is_mutable] == []


def test_no_row_is_for_a_composite_operator() -> None:
    """Composite operators are taken apart before a graph exists."""
    composite = {
        overload
        for overload in TABLE
        if torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CompositeImplicitAutograd")
    }
    assert composite == COMPOSITE_WITH_ROW.keys() | WRITTEN_LATER


@pytest.mark.parametrize("overload", TABLE, ids=str)
def test_rule_takes_the_schema_s_arguments(overload: torch._ops.OpOverload) -> None:
    arguments = overload._schema.arguments
    positional = [argument.name for argument in arguments if not argument.kwarg_only]
    keywords = {argument.name: None for argument in arguments if argument.kwarg_only}
    inspect.signature(TABLE[overload].rule).bind(*positional, **keywords, out=None)


def test_every_random_operator_has_a_rule_or_stands_for_one_that_has() -> None:
    assert DRAWS.keys() == randomness.OPERATORS - randomness.MAKERS.keys()
    assert {maker(*range(3))[0] for maker in _makers()} <= DRAWS.keys()
    assert DRAWS.keys() & TABLE.keys() == set()


def _makers() -> list[Callable[..., tuple[Any, ...]]]:
    """The rows of ``MAKERS``, taking and ignoring further arguments."""
    return [
        lambda *given, maker=maker: maker(*given[: len(inspect.signature(maker).parameters)])
        for maker in randomness.MAKERS.values()
    ]


@pytest.mark.parametrize("overload", DRAWS, ids=str)
def test_rule_of_a_draw_takes_a_key_and_the_schema_s_other_arguments(overload: torch._ops.OpOverload) -> None:
    arguments = [argument.name for argument in overload._schema.arguments if argument.name not in FACTORY]
    if overload in randomness.SHAPED:
        del arguments[randomness.SHAPED[overload]]
    keywords = {"dtype": None} if overload is aten.randperm.default else {}
    inspect.signature(DRAWS[overload].rule).bind("key", *arguments, **keywords, out=None)


def test_rule_names_are_python_names_and_say_who_they_are() -> None:
    for name, rule in RULES.items():
        assert name.isidentifier()
        assert rule.__doc__, f"{name} has no docstring"
