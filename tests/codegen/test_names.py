"""Names of generated code."""

from __future__ import annotations

import pytest

from tpu_lowering.codegen import names
from tpu_lowering.lower.own_operators import OWN


def test_every_own_operator_is_a_name() -> None:
    assert {operator.__name__: getattr(names, operator.__name__) for operator in OWN} == {
        operator.__name__: function for operator, function in OWN.items()
    }
    assert len({operator.__name__ for operator in OWN}) == len(OWN)


def test_another_name_is_none() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'sum'"):
        _ = names.sum
