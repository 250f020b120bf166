"""The names that a function's code reads, found in its bytecode.

What is not listed here is not understood, and code with it cannot be followed: an instruction of a later Python, an
import, a store that outlives the call.
"""

from __future__ import annotations

import dataclasses
import dis
import types
from typing import Any

READS_NAME = ("LOAD_GLOBAL", "LOAD_DEREF")
READS_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
STAYS_INSIDE = frozenset(
    ("LOAD_CONST", "LOAD_FAST", "LOAD_CLOSURE", "LOAD_ASSERTION_ERROR", "STORE_FAST", "STORE_DEREF", "STORE_SUBSCR",
     "STORE_SLICE", "DELETE_FAST", "DELETE_DEREF", "DELETE_SUBSCR", "LOAD_FAST_CHECK", "LOAD_FAST_AND_CLEAR",
     "LOAD_FAST_LOAD_FAST", "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST", "STORE_FAST_MAYBE_NULL",
     "LOAD_FAST_BORROW", "LOAD_FAST_BORROW_LOAD_FAST_BORROW", "LOAD_SMALL_INT")
)  # fmt: skip
"""Instructions that move values of the call itself, and constants. Contents of containers are read again after a call
of the function, so a store into one is seen."""
MOVES = ("LOAD_", "STORE_", "DELETE_", "IMPORT_", "SETUP_ANNOTATIONS")
MAKES_SET = ("BUILD_SET", "SET_UPDATE", "SET_ADD")
FRAMES = frozenset(("gi_frame", "cr_frame", "ag_frame", "f_globals", "f_locals", "f_builtins", "f_back", "tb_frame"))
"""Attributes through which code reads what its text does not name, beside those with two underscores."""


class UnknownValueError(Exception):
    """A function reads something that has no fingerprint; its text says what."""


@dataclasses.dataclass(frozen=True)
class Read:
    """A name, and the attributes that are taken of its value at once, one of the other.

    Attributes:
        is_global: whether it is a global name; else a variable that functions share, of a closure or of their own.
        name: the name.
        attributes: ``("nn", "relu")`` in ``jax.nn.relu``.
    """

    is_global: bool
    name: str
    attributes: tuple[str, ...]


def reads(code: types.CodeType) -> frozenset[Read]:
    """What code reads, functions defined inside it included; variables of closures among them that are its own.

    Raises:
        UnknownValueError: an instruction or an attribute that may reach anything.
    """
    found: set[Read] = set()
    is_global, name, attributes, unordered = True, "", (), False
    for instruction in (*dis.get_instructions(code), None):
        operation = "" if instruction is None else instruction.opname
        argument = None if instruction is None else instruction.argval
        if operation in ("EXTENDED_ARG", "CACHE"):
            continue
        if unordered and operation != "CONTAINS_OP":
            raise UnknownValueError("a set, whose order is another one in each process")
        unordered = operation in MAKES_SET or (operation == "LOAD_CONST" and isinstance(argument, frozenset))
        if operation in READS_ATTRIBUTE and name:
            attributes = (*attributes, str(argument))
        elif name:
            found.add(Read(is_global, name, attributes))
            name, attributes = "", ()
        _check(operation, argument)
        if operation in READS_NAME:
            is_global, name = operation == "LOAD_GLOBAL", str(argument)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= reads(constant)
    return frozenset(found)


def _check(operation: str, argument: object) -> None:
    if operation in READS_ATTRIBUTE:
        if str(argument).startswith("__") or argument in FRAMES:
            raise UnknownValueError(f"the attribute {argument}")
    elif operation.startswith("IMPORT_"):
        raise UnknownValueError(f"import {argument}")
    elif operation.startswith(MOVES) and operation not in STAYS_INSIDE and operation not in READS_NAME:
        raise UnknownValueError(f"{operation} {argument}")


def described(value: Any) -> str:
    """Code as text that is the same in every process: bytecode, names and constants; not where it was written.

    Constants are described too: numbers, strings, and tuples and sets of constants.
    """
    if isinstance(value, types.CodeType):
        shape = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags)
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        return f"code {value.co_code!r} {shape} {names} {value.co_exceptiontable!r} {described(value.co_consts)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(described, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(described, value)))}}}"
    return f"{type(value).__name__} {value!r}"
