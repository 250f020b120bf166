"""What the user calls a graph's inputs and modules: by the names of ``named_parameters`` and of arguments.

Dynamo says where it found an input: ``L['self']._modules['layers']._modules['0']._parameters['weight']`` is
"layers.0.weight", ``L['input_ids']`` is "input_ids", ``L['batch']['ids']`` is "batch.ids".
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from torch import fx

from tpu_lowering import compat

MODULE_DICTIONARIES = ("_modules", "_parameters", "_buffers")
_PARTS = re.compile(r"\[(?:'([^']*)'|\"([^\"]*)\"|(\d+))\]|\.(\w+)")
CALLED_WITH = re.compile(r"^L\['kwargs'\](?=\[)")
"""Keyword arguments of a module's call, where Dynamo starts from that, as it does for a module with hooks."""


def input_name(placeholder: fx.Node) -> str:
    """The name of an input of Dynamo's graph; "" where Dynamo does not say what it is."""
    source = CALLED_WITH.sub("L", compat.source_of(placeholder))
    parts = parts_of(source)
    inside = next((at for at, part in enumerate(parts) if part in MODULE_DICTIONARIES), None)
    if inside is None:
        return ".".join(parts)
    # Of the path within the outermost module each other part is a dictionary's name.
    return ".".join(part for part in parts[inside:] if part not in MODULE_DICTIONARIES)


def parts_of(source: str) -> list[str]:
    """The keys and attributes of an access path, without the kind of variable that it starts from."""
    return ["".join(found) for found in _PARTS.findall(source)]


def modules_of(node: fx.Node) -> list[tuple[str, str]]:
    """The modules that a node was called in, outermost first: each call's key, and the module's name."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(str(key), module_name(str(path))) for key, (path, *_) in stack.items()]


def module_name(path: str) -> str:
    """The name of a module by the path in Dynamo's records: ``L['self'].layers.0`` is "layers.0"."""
    _, _, inside = path.partition("]")
    if "._modules" in inside:
        return ".".join(part for part in parts_of(inside) if part not in MODULE_DICTIONARIES)
    return inside.lstrip(".")


def near(name: str, known: Sequence[str]) -> str:
    """Those of some names that a name may mean, in words."""
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
    return ", ".join(map(repr, found)) or "no name at all"
