"""Which dimensions of a kernel's operands and results may be split over a mesh, written like an einsum.

``"rows cols, cols out -> rows out"``: on the left one term for each tensor argument, written ones too, in schema order;
on the right one for each value that the function returns; in a term one name for each dimension. Each device runs the
kernel on its part, so dimensions with one name are split alike. A name that is on the left alone is one that the kernel
sums over or orders by: it is whole on each device, and so is a dimension called ``_``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tpu_lowering import errors
from tpu_lowering.ir import shardings
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.ir.types import TensorType
from tpu_lowering.options import Axes

WHOLE = "_"
Term = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        text: as it was written.
        operands: the names of each operand's dimensions.
        results: the names of each result's dimensions.
    """

    text: str
    operands: tuple[Term, ...]
    results: tuple[Term, ...]

    def what_does_not_fit(self, operands: Sequence[TensorType], results: Sequence[TensorType]) -> str | None:
        """Why the rule is none for some operands and results, worded "expected X, got Y"; None if it is one."""
        for kind, terms, types in (("operand", self.operands, operands), ("result", self.results, results)):
            if len(terms) != len(types):
                return f"expected a term for each of {len(types)} {kind}s, got {len(terms)} in {self.text!r}"
            for at, (term, type_) in enumerate(zip(terms, types, strict=True)):
                if len(term) != type_.ndim:
                    return (
                        f"expected a name for each dimension of {kind} {at}, which is {type_}, got "
                        f"{' '.join(term)!r} in {self.text!r}"
                    )
        return None

    def split(self, operands: Sequence[TensorType], known: Sequence[Axes | None], mesh: Mesh) -> Mapping[str, Term]:
        """The axes that each name is split along: those that the first operand gives it whose sharding is known.

        A name is split along no axis that another is, and only if its sizes can be.

        Args:
            operands: types.
            known: how each operand lies; None where that is not known.
            mesh: of the axes.
        """
        free = {name for term in self.results for name in term} - {WHOLE}
        sizes = [
            (name, size) for term, type_ in zip(self.operands, operands, strict=True)
            for name, size in zip(term, type_.shape, strict=True)
        ]  # fmt: skip
        found: dict[str, Term] = {}
        for term, axes in zip(self.operands, known, strict=True):
            for name, along in zip(term, shardings.padded(axes or (), len(term)), strict=True):
                taken = {axis for other in found.values() for axis in other}
                fits = all(size % mesh.size(along) == 0 for other, size in sizes if other == name)
                if along and name in free and name not in found and fits and not taken & set(along):
                    found[name] = along
        return found


def axes_of(term: Term, split: Mapping[str, Term]) -> Axes:
    """How an operand or a result lies."""
    return tuple(split.get(name, ()) for name in term)


def parse(text: Any, schema: Any, where: str) -> Rule:
    """The rule that a text is.

    Args:
        text: what the user wrote.
        schema: the operator's.
        where: the source line of its function.

    Raises:
        TpuLoweringError: TL715.
    """
    if not isinstance(text, str) or text.count("->") != 1:
        raise _no_rule(schema, f"a text such as 'i j, j k -> i k', got {text!r}", where)
    left, right = (tuple(tuple(term.split()) for term in side.split(",")) for side in text.split("->"))
    for name in (name for term in (*left, *right) for name in term):
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise _no_rule(schema, f"names of dimensions, separated by spaces, got {name!r} in {text!r}", where)
    for term in (*left, *right):
        names = [name for name in term if name != WHOLE]
        if len(set(names)) < len(names):
            raise _no_rule(schema, f"another name for each dimension of a term, got {' '.join(term)!r}", where)
    unknown = {name for term in right for name in term} - {name for term in left for name in term} - {WHOLE}
    if unknown:
        listed = ", ".join(map(repr, sorted(unknown)))
        raise _no_rule(schema, f"names that are left of the arrow too, got {listed} in {text!r}", where)
    rule = Rule(text, left, right)
    _check_written(rule, schema, where)
    return rule


def _check_written(rule: Rule, schema: Any, where: str) -> None:
    """A written operand and its new value have one term; where arguments are lists, their number is not known yet."""
    tensors = [argument for argument in schema.arguments if "Tensor" in str(argument.type)]
    if any("List" in str(argument.type) or "[]" in str(argument.type) for argument in tensors):
        return
    optional = any("Optional" in str(argument.type) or "?" in str(argument.type) for argument in tensors)
    if len(rule.operands) != len(tensors) and not (optional and len(rule.operands) < len(tensors)):
        names = ", ".join(argument.name for argument in tensors)
        raise _no_rule(schema, f"a term for each of {names}, got {len(rule.operands)} in {rule.text!r}", where)
    if optional:
        return
    written = [at for at, a in enumerate(tensors) if a.alias_info is not None and a.alias_info.is_write]
    for result, at in enumerate(written):
        given = rule.results[result] if result < len(rule.results) else ()
        if given != rule.operands[at]:
            raise _no_rule(
                schema,
                f"{' '.join(rule.operands[at])!r} as the term of the new value of {tensors[at].name}, got "
                f"{' '.join(given)!r} in {rule.text!r}",
                where,
            )


def _no_rule(schema: Any, expected_got: str, where: str) -> errors.TpuLoweringError:
    return errors.refuse(
        "TL715",
        f"sharding of {schema.name}",
        f"expected {expected_got}",
        "write a term for each tensor argument, '->', and one for each value that the function returns; a term has a "
        "name for each dimension, or _ for one that must be whole",
        where,
    )
