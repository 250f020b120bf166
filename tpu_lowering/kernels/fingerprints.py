"""What a Python function does, as text that is the same in every process: its code, and all that the code refers to.

A kernel is known by its function. Two processes have the same function if its bytecode and constants are equal, and,
name by name, what it reads: numbers, strings and element types, containers of those, functions by the same rule, and
what ``constant_names`` lists of released packages. Triton finds out in the same way whether a kernel of an earlier
process may be used (``DependenciesFinder`` in ``triton/runtime/jit.py``). What is none of these (an object of the
user's, ``os.environ``, a file, a tensor) has no fingerprint: a kernel with it is traced anew wherever one is compiled.

Names can be given other values later. A fingerprint knows the places that it was read from, so that it costs little to
ask whether it is still true; Triton asks at each launch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import types
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tpu_lowering.kernels import constant_names
from tpu_lowering.kernels.bytecode import Read, UnknownValueError, described, reads
from tpu_lowering.kernels.constant_names import PLAIN

MISSING = object()
CODE = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")


@dataclasses.dataclass(frozen=True, eq=False)
class ReadSource:
    """Somewhere that values were read from, and which they were."""

    read: Callable[[], Iterable[Any]]
    seen: tuple[Any, ...]

    @staticmethod
    def of(read: Callable[[], Iterable[Any]]) -> ReadSource:
        return ReadSource(read, tuple(read()))

    def is_same(self) -> bool:
        try:
            found = tuple(self.read())
        except ValueError:  # a closure's variable is gone
            return False
        return len(found) == len(self.seen) and all(map(operator.is_, found, self.seen))


@dataclasses.dataclass(frozen=True, eq=False)
class Followed:
    """What a value, most often a function, is made of.

    Attributes:
        text: equal for equal values, in other processes too; parts that cannot be followed are left out.
        unknown: the first part that cannot be followed; "" if there is none.
        places: where the parts were read.
    """

    text: str
    unknown: str
    places: tuple[ReadSource, ...]

    def is_current(self) -> bool:
        """Whether all that was read is still the same object. Cheap: it is asked before each call of a program."""
        return all(place.is_same() for place in self.places)

    def beside(self, holds: Callable[[], bool]) -> Followed:
        """The same, as long as something else holds too."""
        return Followed(self.text, self.unknown, (*self.places, ReadSource(lambda: (holds(),), (True,))))

    def settled(self) -> Followed:
        """The same without the places that have changed meanwhile: tracing a function may write to what it reads, and
        to ask for those again would never find them as they were."""
        return Followed(self.text, self.unknown, tuple(place for place in self.places if place.is_same()))


def follow(value: Any) -> Followed:
    """Follows a value to all that it refers to.

    Args:
        value: functions, ``functools.partial``, what ``jax.jit`` returns; numbers, strings and element types; tuples,
            lists and dictionaries of those, and sets of numbers; what ``constant_names`` lists.
    """
    walk = _Walk()
    text = walk.of(value)
    names = [ReadSource(_reader(names, tuple(seen)), tuple(seen.values())) for names, seen in walk.names.values()]
    read = tuple(walk.functions)
    code = ReadSource.of(lambda: itertools.chain.from_iterable(map(CODE, read)))
    return Followed(text, walk.unknown, (*names, code, *walk.places))


def _reader(names: dict[str, Any], wanted: tuple[str, ...]) -> Callable[[], Iterable[Any]]:
    return lambda: map(names.get, wanted, itertools.repeat(MISSING))


def fingerprint(value: Any) -> str:
    """The text of a value that can be followed whole; see ``follow``.

    Raises:
        UnknownValueError: the value, or one that it refers to, cannot be followed.
    """
    found = follow(value)
    if found.unknown:
        raise UnknownValueError(found.unknown)
    return found.text


class _Walk:
    """One walk; values that refer to each other are numbered in the order they are met.

    Attributes:
        unknown: the first part that cannot be followed.
        names: for each table of names, by identity, the table and what was found in it.
        places: other places.
        functions: functions whose code was read.
    """

    def __init__(self) -> None:
        self.met: dict[int, tuple[int, Any]] = {}
        self.unknown = ""
        self.names: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.places: list[ReadSource] = []
        self.functions: list[types.FunctionType] = []

    def of(self, value: Any) -> str:
        if type(value) in PLAIN or isinstance(value, np.dtype):
            return f"{type(value).__name__} {value!r}"
        named = constant_names.name_of(value)
        if named is not None:
            self.functions += named.functions
            return named.name
        if id(value) in self.met:
            return f"number {self.met[id(value)][0]}"
        self.met[id(value)] = (len(self.met), value)
        try:
            return self._of_object(value)
        except UnknownValueError as error:
            self.unknown = self.unknown or str(error)
            return f"unknown {error}"

    def _of_object(self, value: Any) -> str:
        kind = type(value)
        if kind is types.FunctionType:
            return self._of_function(value)
        if kind in (tuple, list):
            if kind is list:
                self.places.append(ReadSource.of(functools.partial(iter, value)))
            return f"{kind.__name__} {self._all(value)}"
        if kind is dict or kind is types.MappingProxyType:
            self.places.append(ReadSource.of(lambda: (*value.keys(), *value.values())))
            return f"dict {self._all(itertools.chain.from_iterable(value.items()))}"
        if kind in (set, frozenset) and all(type(element) in (bool, int, float) for element in value):
            self.places.append(ReadSource.of(functools.partial(iter, value)))
            return f"set {sorted(map(self.of, value))}"
        if kind is functools.partial:
            self.places.append(ReadSource.of(lambda: (value.func, value.args, value.keywords)))
            return f"partial {self._all((value.func, value.args, value.keywords))}"
        if kind is constant_names.JIT:
            self.places.append(ReadSource.of(lambda: vars(value).values()))
            return f"jit {self._all((value.__wrapped__, _attributes(value)))}"
        if dataclasses.is_dataclass(kind) and constant_names.name_of(kind) is not None:
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return f"{self.of(kind)} {self._all(fields.items())}"
        raise UnknownValueError(f"{kind.__module__}.{kind.__qualname__} {getattr(value, '__name__', '')}")

    def _all(self, values: Iterable[Any]) -> str:
        return f"({', '.join([self.of(value) for value in values])})"

    def _of_function(self, function: types.FunctionType) -> str:
        self.functions.append(function)
        self.places.append(ReadSource.of(lambda: vars(function).values()))
        annotations = repr(sorted(function.__annotations__.items(), key=lambda item: item[0]))
        parts = (function.__defaults__, function.__kwdefaults__, annotations, _attributes(function))
        closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        texts = [described(function.__code__), self._all(parts)]
        texts += [self._of_cell(name, cell) for name, cell in closure.items()]
        for read in sorted(reads(function.__code__), key=dataclasses.astuple):
            texts.append(f"{read.name} {self._of_read(function, closure, read)}")
        return f"function {' '.join(texts)}"

    def _of_cell(self, name: str, cell: types.CellType) -> str:
        """A variable of a closure; a module is known by what is read of it."""
        try:
            value = cell.cell_contents
        except ValueError as error:
            raise UnknownValueError("a closure without a value") from error
        self.places.append(ReadSource.of(lambda: (cell.cell_contents,)))
        return name if isinstance(value, types.ModuleType) else f"{name} {self.of(value)}"

    def _of_read(self, function: types.FunctionType, closure: dict[str, types.CellType], read: Read) -> str:
        """What a name stands for, with the attributes that are read of it as long as it is a module."""
        if read.is_global:
            value = self._global(function, read)
        elif read.name in closure and isinstance(closure[read.name].cell_contents, types.ModuleType):
            value = closure[read.name].cell_contents
        else:  # a variable of the function's own, or one that is known by its value
            return ""
        left = list(read.attributes)
        while left and type(value) is types.ModuleType:
            value = self._looked_up(vars(value), left.pop(0), read)
        if isinstance(value, types.ModuleType):
            raise UnknownValueError(f"the module {value.__name__} as a value")
        return self.of(value) + (self._of_attribute(value, left[0]) if left else "")

    def _of_attribute(self, value: Any, name: str) -> str:
        """An attribute, where a class or a package's function has one that could have been replaced; it is seen to
        change on other objects, too."""
        owners = value.__mro__ if isinstance(value, type) else (value, *type(value).__mro__)
        tables: list[Any] = [vars(owner) for owner in owners if hasattr(owner, "__dict__")]
        self.places.append(ReadSource.of(lambda: [table.get(name, MISSING) for table in tables]))
        if not isinstance(value, type):
            return ""
        found = next((table[name] for table in tables if name in table), MISSING)
        found = getattr(found, "__func__", found)
        is_value = type(found) in PLAIN or isinstance(found, types.FunctionType)
        return f".{name} {self.of(found)}" if is_value else f".{name}"

    def _global(self, function: types.FunctionType, read: Read) -> Any:
        found = self._find(function.__globals__, read.name)
        if found is not MISSING:
            return found
        builtins: Any = function.__globals__["__builtins__"]
        return self._looked_up(builtins if isinstance(builtins, dict) else vars(builtins), read.name, read)

    def _looked_up(self, names: dict[str, Any], name: str, read: Read) -> Any:
        found = self._find(names, name)
        if found is MISSING:
            raise UnknownValueError(f"the name {'.'.join((read.name, *read.attributes))}, which is not defined")
        return found

    def _find(self, names: dict[str, Any], name: str) -> Any:
        found = self.names.setdefault(id(names), (names, {}))[1]
        return found.setdefault(name, names.get(name, MISSING))


def _attributes(function: Any) -> dict[str, Any]:
    """The attributes that a function was given."""
    known = ("__annotations__", "__name__", "__module__", "__doc__", "__qualname__", "__wrapped__", "_fun", "_jit_info")
    return {name: value for name, value in sorted(vars(function).items()) if name not in known}
