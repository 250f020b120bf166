"""A kernel's body in functional form: from what is behind its references before a step to what is there after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tpu_lowering import compat
from tpu_lowering.ir.jaxprs import with_array_literals


class NotUnderstood(Exception):
    """The functional form of a body cannot be had, or not be followed: nothing is proved."""


@dataclasses.dataclass
class FunctionalBody:
    """The functional form of a kernel body.

    Attributes:
        closed: a closed jaxpr from what is behind all references before a step to that after it.
        mapping: Pallas's grid mapping.
        extents: those of the grid that the body knows; None where one depends on data.
        scoped: by the identity of a ``run_scoped`` equation, the equation, and its body as a function of values.
    """

    closed: Any
    mapping: Any
    extents: tuple[int | None, ...]
    scoped: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, jaxpr: Any, mapping: Any, extents: Sequence[int | None]) -> FunctionalBody:
        """The form of a ``pallas_call``'s body.

        Raises:
            NotUnderstood: JAX has no functional form of something in the body.
        """
        try:
            closed, _ = compat.discharged(with_array_literals(jaxpr), mapping)
        except Exception as error:  # any rule of JAX's, in its own words
            raise NotUnderstood(str(error)) from error
        return cls(closed, mapping, tuple(extents))

    def axes(self) -> frozenset[int]:
        """The axes of the grid whose index the body asks for."""
        return frozenset(_axes(self.closed.jaxpr))

    def without_scope(self, equation: Any) -> Any:
        """The body of a ``run_scoped`` equation as a function of values.

        Raises:
            NotUnderstood: JAX has no functional form of something in it.
        """
        if id(equation) not in self.scoped:
            try:
                self.scoped[id(equation)] = (equation, compat.without_scoped_references(equation, self.mapping))
            except Exception as error:  # any rule of JAX's, in its own words
                raise NotUnderstood(str(error)) from error
        return self.scoped[id(equation)][1]


def _axes(jaxpr: Any) -> set[int]:
    own = {equation.params["axis"] for equation in jaxpr.eqns if equation.primitive.name == "program_id"}
    return own.union(*(_axes(inner) for equation in jaxpr.eqns for inner in compat.jaxprs_in(equation.params)))
