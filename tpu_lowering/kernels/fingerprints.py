"""What a Python function does, as text that is the same in every process: its code, and all that the code refers to.

A kernel is known by its function. Two processes have the same function if its bytecode and constants are equal, and,
name by name, the globals and closures that it reads: functions by the same rule, modules and their members by the
package that they belong to, whose version is part of every key. Triton finds out in the same way whether a kernel of an
earlier process may be used (``DependenciesFinder`` in ``triton/runtime/jit.py``). What cannot be followed (an object of
the user's, a user's module, ``eval``) has no fingerprint, and a kernel with it is traced in every process.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch

from tpu_lowering import compat

RELEASED = frozenset(
    (*sys.stdlib_module_names, "helion", "jax", "jaxlib", "ml_dtypes", "numpy", "torch", "tpu_lowering")
)
"""Packages whose contents are known by their version; those of this package's sources have a digest."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype)
OPAQUE = frozenset((eval, exec, globals, locals, vars, __import__, compile, open, input))
"""Builtins through which code reads what its text does not name."""


class UnknownValueError(Exception):
    """A function reads something that has no fingerprint; its text says what."""


def fingerprint(value: Any) -> str:
    """What a function, or any value that it reads, is made of.

    Args:
        value: functions, ``functools.partial``, what ``jax.jit`` returns; numbers, strings and element types; tuples,
            lists, dictionaries and sets of those; anything that a released package defines.

    Raises:
        UnknownValueError: the value, or one that it refers to, cannot be followed.
    """
    return _Fingerprints().of(value)


class _Fingerprints:
    """One walk; functions that refer to each other are numbered in the order they are met."""

    def __init__(self) -> None:
        self.met: dict[types.FunctionType, int] = {}

    def of(self, value: Any) -> str:
        if type(value) in PLAIN or isinstance(value, np.dtype):
            return f"{type(value).__name__} {value!r}"
        return self._of_object(value)

    def _of_object(self, value: Any) -> str:
        released = _released_name(value)
        if released is not None:
            return released
        if isinstance(value, types.FunctionType):
            if value in self.met:
                return f"function {self.met[value]}"
            self.met[value] = len(self.met)
            return self._of_function(value)
        if isinstance(value, types.CodeType):
            return self._of_code(value)
        if isinstance(value, functools.partial):
            return f"partial {self._all((value.func, value.args, value.keywords))}"
        if type(value) in (tuple, list):
            return f"{type(value).__name__} {self._all(value)}"
        if type(value) in (set, frozenset):
            return f"set {sorted(map(self.of, value))}"
        if type(value) in (dict, types.MappingProxyType):
            return f"dict {self._all(value.items())}"
        if _is_released(type(value)) and dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return f"{_name(type(value))} {self._all(fields.items())}"
        if isinstance(value, type(jax.jit(len))):
            jitted: Any = value
            return f"jit {self.of(jitted.__wrapped__)}"
        raise UnknownValueError(f"{type(value).__module__}.{type(value).__qualname__} {getattr(value, '__name__', '')}")

    def _all(self, values: Any) -> str:
        return f"({', '.join(self.of(value) for value in values)})"

    def _of_function(self, function: types.FunctionType) -> str:
        names = _globals_of(function.__code__)
        read = {name: _looked_up(function, name) for name in sorted(names)}
        cells = [_contents(cell) for cell in function.__closure__ or ()]
        annotations = repr(sorted(function.__annotations__.items(), key=lambda item: item[0]))
        parts = (function.__code__, function.__defaults__, function.__kwdefaults__, annotations, read, cells)
        return f"function {self._all(parts)}"

    def _of_code(self, code: types.CodeType) -> str:
        """Bytecode with its names and constants; where it was written does not matter."""
        shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        return f"code {self._all((code.co_code, code.co_consts, shape, names, code.co_exceptiontable))}"


def _globals_of(code: types.CodeType) -> set[str]:
    """The global names that code reads, functions defined inside it included.

    Raises:
        UnknownValueError: it imports a module of the user's.
    """
    found: set[str] = set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME" and not _is_released_module(instruction.argval):
            raise UnknownValueError(f"import {instruction.argval}")
    for constant in code.co_consts:
        found |= _globals_of(constant) if isinstance(constant, types.CodeType) else set()
    return found


def _looked_up(function: types.FunctionType, name: str) -> Any:
    if name in function.__globals__:
        return function.__globals__[name]
    builtins: Any = function.__globals__["__builtins__"]
    known: Mapping[str, Any] = builtins if isinstance(builtins, dict) else vars(builtins)
    if name not in known:
        raise UnknownValueError(f"the name {name}, which is not defined")
    if known[name] in OPAQUE:
        raise UnknownValueError(f"the builtin {name}")
    return known[name]


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError as error:
        raise UnknownValueError("a closure without a value") from error


def _is_released_module(name: str) -> bool:
    return name.partition(".")[0] in RELEASED


def _is_released(value: Any) -> bool:
    """Whether a class or function is the one that a released package has under its name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or not _is_released_module(module):
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def _name(value: Callable[..., Any] | type) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _released_name(value: Any) -> str | None:
    """How a released package names a value of its own; None if it is none."""
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}" if _is_released_module(value.__name__) else None
    if isinstance(value, enum.Enum):
        return f"{_name(type(value))}.{value.name}" if _is_released(type(value)) else None
    if isinstance(value, (compat.OpOverload, compat.OpOverloadPacket)):  # the user's are in modules of torch's, too
        return None
    return f"{type(value).__name__} {_name(value)}" if _is_released(value) else None
