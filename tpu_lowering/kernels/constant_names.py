"""Names of released packages that mean the same in every process: functions of their arguments alone.

A function of a package is known by its name and its code if it is what the package's source defines: its code is in
the compiled module, its globals are the module's. One that was put in its place, or whose code was replaced, is
followed as the user's own functions are. Only packages and names that are listed here are believed; whatever reads
files, the environment, a clock, the machine or a setting of the process is not.
"""

from __future__ import annotations

import builtins
import dataclasses
import enum
import sys
import types
from typing import Any

import jax
import numpy as np
import torch

from tpu_lowering import compat
from tpu_lowering.kernels import bytecode
from tpu_lowering.session import kept

MODULES = (
    "_collections", "_functools", "_operator", "collections", "dataclasses", "fractions", "functools",
    "helion._utils", "helion.language", "itertools", "jax._src.ad_checkpoint", "jax._src.image", "jax._src.indexing",
    "jax._src.lax", "jax._src.nn", "jax._src.numpy", "jax._src.ops", "jax._src.pallas", "jax._src.random",
    "jax._src.scipy", "jax._src.state", "jax._src.tree", "jax._src.tree_util", "jax.experimental.pallas", "jax.image",
    "jax.lax", "jax.nn", "jax.numpy", "jax.random", "jax.scipy", "jax.tree", "jax.tree_util", "math", "ml_dtypes",
    "numbers", "numpy.linalg", "operator", "torch._C._nn", "torch.nn.functional", "tpu_lowering.demo",
    "tpu_lowering.kernels.libraries", "tpu_lowering.lower", "typing",
)  # fmt: skip
"""Modules, with those inside of them, whose functions and classes are known by their names."""

NAMES = {
    "builtins": frozenset(
        ("abs", "all", "any", "bin", "bool", "bytearray", "bytes", "callable", "chr", "complex", "dict",
         "divmod", "enumerate", "filter", "float", "hex", "int", "isinstance", "issubclass",
         "iter", "len", "list", "map", "max", "min", "next", "object", "oct", "ord", "pow", "range", "repr", "reversed",
         "round", "slice", "sorted", "str", "sum", "tuple", "type", "zip",
         *(name for name, value in vars(builtins).items() if isinstance(value, type)
           and issubclass(value, BaseException)))
    ),
    "contextlib": frozenset(("nullcontext", "suppress")),
    "jax": frozenset(("Array", "ShapeDtypeStruct")),
    "jax._src.api": frozenset(("checkpoint", "grad", "jit", "jvp", "linearize", "value_and_grad", "vjp", "vmap")),
    "jax._src.custom_derivatives": frozenset(("custom_jvp", "custom_vjp")),
    "numpy": frozenset(
        ("abs", "absolute", "add", "all", "any", "arange", "array", "asarray", "bool", "bool_", "broadcast_to", "ceil",
         "concatenate", "cos", "cumprod", "cumsum", "diff", "divide", "dtype", "exp", "exp2", "eye", "finfo", "float16",
         "float32", "float64", "floor", "full", "iinfo", "int16", "int32", "int64", "int8", "linspace", "log", "log2",
         "maximum", "minimum", "multiply", "ndarray", "ones", "outer", "power", "prod", "reshape", "result_type", "sin",
         "sqrt", "stack", "subtract", "sum", "tanh", "transpose", "uint16", "uint32", "uint64", "uint8", "where",
         "zeros")
    ),
    "torch": frozenset(("Size", "Tensor", "dtype", "finfo", "iinfo", "device")),
}  # fmt: skip
"""Single names of modules that have others too."""

AMBIENT = frozenset(
    ("attrgetter", "cache", "cached_property", "debug_print", "enable_debug_checks", "force_tpu_interpret_mode",
     "from_dlpack", "fromfile", "get_printoptions", "get_tpu_info", "is_tpu_device", "load", "lru_cache",
     "methodcaller", "printoptions", "register_dataclass", "register_pytree_node", "register_pytree_node_class",
     "register_static", "reset_tpu_interpret_mode_state", "save", "savez", "set_printoptions",
     "set_tpu_interpret_mode", "singledispatch")
)  # fmt: skip
"""Names in those modules that are none of these functions: they read or write something else than arguments."""

DRAWS = ("rand", "drop", "bernoulli", "normal", "multinomial", "poisson", "gumbel", "rrelu", "binomial", "seed", "file")
"""Parts of names of torch's functions that draw random numbers, or read files."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), torch.dtype)
JIT = type(jax.jit(len))
OWN_ATTRIBUTES = frozenset(("fun", "jvp", "nondiff_argnums", "symbolic_zeros"))
"""Attributes of packages' functions that do not begin with an underscore."""


@dataclasses.dataclass(frozen=True)
class Named:
    """A function, class or member of a package's own that means the same everywhere.

    Attributes:
        name: with the code where there is some, so that an edited package is another one.
        functions: those that the code is of.
    """

    name: str
    functions: tuple[types.FunctionType, ...] = ()


def name_of(value: Any) -> Named | None:
    """How a package names a value; None if it has no name that means the same everywhere."""
    if isinstance(value, enum.Enum):
        return Named(f"{_path(type(value))}.{value.name}") if _is_listed(type(value)) else None
    if isinstance(value, type):
        return Named(f"class {_path(value)}") if _is_listed(value) and _is_as_written(value) else None
    if isinstance(value, (compat.OpOverload, compat.OpOverloadPacket)):  # the user's are in modules of torch's, too
        return None
    if not callable(value) or not _is_listed(value):
        return None
    layers = _layers(value)
    if not all(map(_is_as_built, layers)):
        return None
    functions = tuple(layer for layer in layers if isinstance(layer, types.FunctionType))
    code = [f"{bytecode.described(layer.__code__)} {_defaults(layer)}" for layer in functions]
    return Named(f"{type(value).__name__} {_path(value)} {' '.join(code)}", functions)


def _defaults(function: types.FunctionType) -> str:
    """Its defaults, objects by their type."""
    values = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return " ".join(repr(value) if type(value) in PLAIN else type(value).__qualname__ for value in values)


def _layers(value: Any) -> list[Any]:
    """A function, what it was wrapped around, and other functions that belong to it."""
    found: dict[int, Any] = {}
    left = [value]
    while left:
        one = left.pop()
        if id(one) not in found:
            found[id(one)] = one
            left += [entry for entry in _attributes(one).values() if isinstance(entry, types.FunctionType | JIT)]
    return list(found.values())


def _attributes(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _is_as_built(layer: Any) -> bool:
    """Whether a part of a function is what a package made, without attributes of the user's."""
    kind = type(layer)
    if not all(name.startswith("_") or name in OWN_ATTRIBUTES for name in _attributes(layer)):
        return False
    if isinstance(layer, types.FunctionType):
        return is_defined_by_source(layer)
    compiled = kind in (types.BuiltinFunctionType, np.ufunc, JIT)
    return compiled or (kind.__module__.partition(".")[0] in ("jax", "jaxlib", "numpy") and _is_found(kind))


def _path(value: Any) -> str:
    return f"{value.__module__}.{getattr(value, '__qualname__', None) or value.__name__}"


def _is_found(value: Any) -> bool:
    """Whether a module has a value under the name that the value says."""
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = found.__dict__.get(part) if hasattr(found, "__dict__") else None
    return found is value


def _is_listed(value: Any) -> bool:
    """Whether a value is a package's, under a name that means the same everywhere."""
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if isinstance(value, types.BuiltinFunctionType) and module == "torch":  # an operator, with no path of its own
        known = vars(sys.modules["torch"]).get(str(name)) is value and hasattr(sys.modules["torch"].ops.aten, str(name))
        return known and not any(part in str(name) for part in DRAWS)
    if not isinstance(module, str) or not isinstance(name, str) or name in AMBIENT or not _is_found(value):
        return False
    if module.startswith("torch") and any(part in name for part in DRAWS):
        return False
    inside = any(module == known or module.startswith(f"{known}.") for known in MODULES)
    return inside or name in NAMES.get(module, ())


def _is_as_written(kind: type) -> bool:
    """Whether all methods of a class, its bases' too, are what packages wrote."""
    members = [member for base in kind.__mro__ for member in vars(base).values()]
    functions = [getattr(member, "__func__", member) for member in members]
    return all(map(_is_released, (one for one in functions if isinstance(one, types.FunctionType))))


def _is_released(function: types.FunctionType) -> bool:
    """Whether a method is of a module's source, or was generated for one of its classes."""
    module = str(function.__globals__.get("__name__", ""))
    if module.partition(".")[0] not in RELEASED:
        return module.startswith("namedtuple_")
    generated = function.__code__.co_filename.startswith("<") and function.__globals__ is vars(sys.modules[module])
    return generated or is_defined_by_source(function)


RELEASED = frozenset(
    (*sys.stdlib_module_names, "helion", "jax", "jaxlib", "ml_dtypes", "numpy", "torch", "tpu_lowering")
)


def is_defined_by_source(function: types.FunctionType) -> bool:
    """Whether the source of the module that a function says it is from defines this code."""
    module = str(function.__globals__.get("__name__", ""))
    if module.partition(".")[0] not in RELEASED or function.__globals__ is not vars(sys.modules.get(module, types)):
        return False
    return function.__code__ in _codes_of(module)


@kept(1024, "the source of a released module is compiled; as many as there are such modules")
def _codes_of(module: str) -> frozenset[types.CodeType]:
    """All code of a module, as its compiled source has it."""
    loader: Any = getattr(sys.modules[module], "__loader__", None)
    code = loader.get_code(module) if hasattr(loader, "get_code") else None
    found: set[types.CodeType] = set()
    left = [code] if code is not None else []
    while left:
        one = left.pop()
        found.add(one)
        left += [constant for constant in one.co_consts if isinstance(constant, types.CodeType)]
    return frozenset(found)
