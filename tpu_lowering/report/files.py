"""``FILE:FUNCTION``: what a command is about, loaded from a user's file."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Generator, Mapping
from types import ModuleType
from typing import Any

from tpu_lowering import errors, offenders
from tpu_lowering.kernels.jax_function import first_line

EXAMPLE = "python -m tpu_lowering explain model.py:forward"
"""How such a command looks."""


@dataclasses.dataclass(frozen=True)
class Given:
    """A function and what it is called with.

    Attributes:
        function: a function or module.
        args, kwargs: its arguments.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def with_arguments(self) -> Any:
        """The function, given its keyword arguments."""
        return functools.partial(self.function, **self.kwargs) if self.kwargs else self.function


def given(target: str) -> Given:
    """A file's function, and what the file's ``example_inputs`` holds or gives.

    ``example_inputs`` is a function or a value: a tuple or list of positional arguments, a dictionary of keyword
    arguments, or one argument. ``FUNCTION`` may be a class, which is then called without arguments, and may have dots.

    Raises:
        TpuLoweringError: TL106 if there is no such file, function or inputs.
    """
    path, _, name = target.rpartition(":")
    module = load(pathlib.Path(path), target)
    function = attribute(module, name, target)
    inputs = getattr(module, "example_inputs", None)
    if inputs is None:
        remedy = f"write 'def example_inputs(): return (x,)' into {stem(module)}.py, with what {name} is called with"
        raise no_target(target, f"no function 'example_inputs' in {stem(module)}", remedy)
    if inspect.isclass(function):
        function = _called(function, target, name)
    inputs = _called(inputs, target, "example_inputs") if callable(inputs) else inputs
    if isinstance(inputs, Mapping):
        if not all(isinstance(key, str) for key in inputs):
            raise no_target(target, "example_inputs with keys that are no argument's name")
        return Given(function, (), dict(inputs))
    return Given(function, tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {})


def load(path: pathlib.Path, target: str) -> ModuleType:
    """A file as a module. It may import its neighbours, as a script may.

    Raises:
        TpuLoweringError: TL106.
    """
    if not path.is_file():
        beside = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        remedy = f"write {target.replace(path.name, near[0])}" if near else EXAMPLE
        raise no_target(target, f"no file {str(path)!r}", remedy)
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"loaded_{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise no_target(target, f"no Python file {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    try:
        with _entered(module, path.resolve().parent):
            spec.loader.exec_module(module)
    except errors.TpuLoweringError:
        raise
    except (Exception, SystemExit) as error:
        remedy = f"mend {path.name}: 'python {path}' says where it raises"
        raise no_target(target, f"{type(error).__name__} when it was run: {first_line(error)}", remedy) from error
    return module


@contextlib.contextmanager
def _entered(module: ModuleType, folder: pathlib.Path) -> Generator[None]:
    """A module among Python's own, which dataclasses with annotations as text ask for it, and its folder first among
    those that are searched. Both stay, for imports inside functions; a module that fails goes again."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    sys.modules[module.__name__] = module
    try:
        yield
    except BaseException:
        sys.modules.pop(module.__name__, None)
        raise


def attribute(module: ModuleType, name: str, target: str) -> Any:
    """What a name with dots stands for in a module, if it can be called.

    Raises:
        TpuLoweringError: TL106.
    """
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        known = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"write {target.rpartition(':')[0]}:{near[0]}" if near else EXAMPLE
        raise no_target(target, f"no function {name!r} in {stem(module)}", remedy)
    return found


def stem(module: ModuleType) -> str:
    """A module's name as its file has it."""
    return pathlib.Path(str(module.__file__)).stem


def _called(function: Any, target: str, name: str) -> Any:
    try:
        return function()
    except errors.TpuLoweringError:
        raise
    except Exception as error:
        line = offenders.line_that_raised(error)
        got = f"{type(error).__name__} from {name}(): {first_line(error)}"
        raise no_target(target, got, f"mend {name}", line) from error


def no_target(target: str, got: str, remedy: str = EXAMPLE, where: str = "") -> errors.TpuLoweringError:
    expected = "FILE:FUNCTION, with example_inputs() in FILE to give FUNCTION's arguments"
    return errors.refuse("TL106", repr(target), f"expected {expected}, got {got}", remedy, where)
