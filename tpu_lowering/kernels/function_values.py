"""Functions as arguments of Helion kernels, such as the epilogue of a matmul, carried through Dynamo's graph."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Generator
from typing import Any

from tpu_lowering import compat


@dataclasses.dataclass(frozen=True, repr=False)
class FunctionValue:
    """A function in a graph; equal to another if it is the same function."""

    function: types.FunctionType

    def __repr__(self) -> str:
        """The name as Python would write it: torch.fx compiles the text of a graph."""
        return self.function.__name__ if self.function.__name__.isidentifier() else "function"

    def __fx_repr__(self) -> tuple[str, dict[str, Any]]:
        return repr(self), {repr(self): self}


def carried(value: Any) -> Any:
    """What stands in a graph for an argument of a kernel."""
    return FunctionValue(value) if isinstance(value, types.FunctionType) else value


def given(value: Any) -> Any:
    """The inverse of ``carried``."""
    return value.function if isinstance(value, FunctionValue) else value


@contextlib.contextmanager
def allowed() -> Generator[None]:
    """A scope in which Dynamo captures Helion kernels that take functions."""
    if not compat.is_helion_imported():
        yield
        return
    compat.register_graph_value(FunctionValue)
    with compat.carried_functions(carried):
        yield
