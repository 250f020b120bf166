"""Arguments of a kernel, split into tensors (traced) and everything else (part of the specialisation)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Slot:
    """Stands in a template for the tensor at this position of the operand list."""

    index: int


def split(arguments: Any, is_tensor: Callable[[Any], bool]) -> tuple[Any, list[Any]]:
    """Replaces every tensor in nested lists, tuples and dictionaries by a ``Slot``.

    Returns:
        The template, and the tensors in the order of their slots.
    """
    tensors: list[Any] = []
    return _split(arguments, is_tensor, tensors), tensors


def _split(value: Any, is_tensor: Callable[[Any], bool], tensors: list[Any]) -> Any:
    # No function inside ``split``, which would refer to itself: such a cycle keeps the tensors until garbage is
    # collected, and torch 2.9 then forgets which values of a graph being traced they are.
    if is_tensor(value):
        tensors.append(value)
        return Slot(len(tensors) - 1)
    if isinstance(value, (list, tuple)):
        return _rebuilt(value, [_split(item, is_tensor, tensors) for item in value])
    if isinstance(value, dict):
        return {key: _split(item, is_tensor, tensors) for key, item in value.items()}
    return value


def _rebuilt(value: Any, items: list[Any]) -> Any:
    """A list or tuple with other items: a tuple of the same kind, or a plain list, also where FX made it immutable."""
    if hasattr(value, "_fields"):
        return type(value)(*items)
    return items if isinstance(value, list) else type(value)(items)


def fill(template: Any, tensors: Sequence[Any]) -> Any:
    """The inverse of ``split``: puts values back into their slots."""
    if isinstance(template, Slot):
        return tensors[template.index]
    if isinstance(template, (list, tuple)):
        return _rebuilt(template, [fill(item, tensors) for item in template])
    if isinstance(template, dict):
        return {key: fill(item, tensors) for key, item in template.items()}
    return template


def slots(template: Any) -> list[int]:
    """Positions of the tensors in a template, in order of appearance."""
    if isinstance(template, Slot):
        return [template.index]
    if isinstance(template, (list, tuple)):
        return [index for item in template for index in slots(item)]
    if isinstance(template, dict):
        return [index for item in template.values() for index in slots(item)]
    return []


def bind(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of an operator's schema by name, in schema order, defaults filled in."""
    bound: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif position < len(args):
            bound[argument.name] = args[position]
        else:
            bound[argument.name] = argument.default_value
    return bound


class Identity:
    """A value that is equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def key(value: Any) -> Hashable:
    """A dictionary key that tells ``True``, ``1`` and ``1.0`` apart, and ``0.0`` from ``-0.0``.

    Values that cannot be hashed are told apart by identity and stay alive in the key, so a key never confuses two of
    them.
    """
    kind = type(value)
    if kind in PLAIN:
        return (kind, value)
    if isinstance(value, (list, tuple)):
        return (kind, tuple(map(key, value)))
    if isinstance(value, (float, complex)):
        return (kind, repr(value))
    if isinstance(value, Mapping):
        return (dict, tuple((key(name), key(item)) for name, item in value.items()))
    try:
        hash(value)
    except TypeError:
        return (kind, Identity(value))
    return (kind, value)


PLAIN = frozenset((int, bool, str, type(None)))
"""Types of values that are equal where they are the same."""
