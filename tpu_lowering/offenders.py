"""How errors and reports name what they are about: functions by their names, lines, values without addresses."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import traceback
import types
from typing import Any

from tpu_lowering import errors

LONGEST = 300
"""Characters of a value that an error shows."""

_PLAIN = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_LIBRARIES = ("torch", "jax", "jaxlib", "helion", "numpy", "tpu_lowering")


def function_of(value: Any) -> Any:
    """The function that runs when a value is called: behind ``functools.partial``, decorators, bound methods, and
    objects with ``__call__``; of a module its ``forward``."""
    while True:
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, types.MethodType):
            value = value.__func__
        elif hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        elif hasattr(type(value), "forward"):
            value = type(value).forward
        elif callable(value) and not isinstance(value, (type, *_PLAIN)):
            call = inspect.getattr_static(type(value), "__call__", None)
            if not isinstance(call, types.FunctionType):
                return value
            value = call
        else:
            return value


def name_of(value: Any) -> str:
    """The qualified name of what can be called: of a function behind ``functools.partial`` its own, of an object with
    ``__call__`` that of its class."""
    while isinstance(value, functools.partial):
        value = value.func
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else type(value).__qualname__


def shown(value: Any) -> str:
    """A value as an error says what it got: what can be called by its name, an array by its type, all else as Python
    writes it, on one line."""
    kind = type(value)
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    if isinstance(value, functools.partial):
        return f"a partial of {name_of(value)}"
    if callable(value) and isinstance(getattr(value, "__qualname__", None), str):
        return f"the function {value.__qualname__}"
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape is not None:
        return f"a {kind.__name__} of {dtype} {list(shape)}"
    text = repr(value)
    if callable(value) and errors.ADDRESS.search(text):
        return f"an object of class {kind.__qualname__}"
    text = " ".join(errors.ADDRESS.sub("", text).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def definition(value: Any) -> str:
    """``file:line in name`` of the definition of what can be called, or "" where Python does not know it."""
    code = getattr(function_of(value), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno} in {code.co_name}" if code is not None else ""


def line_that_raised(error: BaseException) -> str:
    """``file:line in name: code`` of the user's line that an exception was raised in, or that called the library that
    raised it; "" where no line is the user's."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_of_library(frame.filename)]
    return line_of(frames[-1]) if frames else ""


def line_of(frame: traceback.FrameSummary) -> str:
    """``file:line in name: code`` of a place in a program; without the code where Python does not have it."""
    place = f"{frame.filename}:{frame.lineno} in {frame.name}"
    return f"{place}: {frame.line.strip()}" if frame.line else place


def _is_of_library(filename: str) -> bool:
    own, pythons = _folders()
    of_python = filename.startswith(pythons) and not {"site-packages", "dist-packages"} & set(filename.split(os.sep))
    return filename.startswith((*own, "<frozen ")) or of_python


@functools.cache
def _folders() -> tuple[tuple[str, ...], str]:
    """Where the code of ``_LIBRARIES`` is, and Python's own."""
    found = [importlib.util.find_spec(name) for name in _LIBRARIES]
    places = [place for spec in found if spec for place in spec.submodule_search_locations or ()]
    return tuple(os.path.join(place, "") for place in places), os.path.join(os.path.dirname(os.__file__), "")
