"""What the user calls a graph's inputs and modules: by the names of ``named_parameters`` and of arguments.

Dynamo says where it found an input: ``L['self']._modules['layers']._modules['0']._parameters['weight']`` is
"layers.0.weight", ``L['input_ids']`` is "input_ids", ``L['batch']['ids']`` is "batch.ids".
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat

IN_MODULE = re.compile(r"\.(?:_modules|_parameters|_buffers)\[")
DICTIONARIES = ("_modules", "_parameters", "_buffers")
_VARIABLE = re.compile(r"^\w+\['\w+'\](?:\[[^\]]*\])*")
_PARTS = re.compile(r"\[(?:'([^']*)'|\"([^\"]*)\"|(\d+))\]|\.(\w+)")


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of a graph of Dynamo's.

    Attributes:
        inputs: of each input those that it has, the first one as Dynamo found it: a tied weight has several, and a
            tensor that is given for two arguments; "" where Dynamo does not say what it is.
        roots: access paths of the outermost modules that inputs belong to.
        others: what else the function has: arguments that are no inputs, modules, and what these do not use of theirs.
    """

    inputs: tuple[tuple[str, ...], ...]
    roots: tuple[str, ...] = ()
    others: frozenset[str] = frozenset()

    @staticmethod
    def of(module: fx.GraphModule) -> Names:
        """The names of a graph, while Dynamo compiles it."""
        local = compat.traced_locals()
        sources = [compat.source_of(node) for node in module.graph.nodes if node.op == "placeholder"]
        called, same = _arguments_called(local), _names_of_tensors(local)
        inputs = tuple(
            same.get(name, (name,)) for name in (called.get(name, name) for name in map(input_name, sources))
        )
        roots = {source[: found.start()] for source in sources if (found := IN_MODULE.search(source))}
        names = Names(inputs, tuple(sorted(roots, key=len, reverse=True)))
        parts = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
        paths = {path for part in parts for node in part.graph.nodes for _, path in modules_of(node)}
        return dataclasses.replace(names, others=frozenset(map(names.module_name, paths)) | _names_in(local))

    @property
    def known(self) -> list[str]:
        """All of them."""
        return sorted({name for names in self.inputs for name in names} | self.others - {""})

    def module_name(self, path: str) -> str:
        """The name of a module by the path in Dynamo's records: ``L['self'].layers.0`` is "layers.0"."""
        root = next((root for root in self.roots if path.startswith(root)), None)
        inside = _VARIABLE.sub("", path) if root is None else path[len(root) :]
        return ".".join(part for part in inside.split(".") if part) if "[" not in inside else input_name(f"L{inside}")

    def near(self, name: str) -> str:
        """Those names that a name may mean, in words."""
        found = difflib.get_close_matches(name, self.known, n=3, cutoff=0.0)
        return ", ".join(map(repr, found)) or "none"


def modules_of(node: fx.Node) -> list[tuple[str, str]]:
    """The modules that a node was called in, outermost first: each call's key, and the module's path."""
    return [(str(key), str(path)) for key, (path, *_) in (node.meta.get("nn_module_stack") or {}).items()]


def input_name(source: str) -> str:
    """The name of an input by where Dynamo found it."""
    found = IN_MODULE.search(source)
    inside = source[found.start() :] if found else source
    parts = ["".join(groups) for groups in _PARTS.findall(inside)]
    return ".".join(part for part in parts if not (found and part in DICTIONARIES))


def _arguments_called(local: Mapping[str, Any]) -> dict[str, str]:
    """Names of arguments by those that they have where Dynamo traces a wrapper of a module's call, as it does for
    torch's own modules (``fn(*args, **kwargs)``) and for a decorated ``forward`` (``wrapper(*args, **kwargs)``)."""
    args, kwargs, module = local.get("args"), local.get("kwargs"), local.get("fn")
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        return {}
    first = 0
    if not isinstance(module, torch.nn.Module) and args and isinstance(args[0], torch.nn.Module):
        module, first = args[0], 1
    called = {f"kwargs.{name}": str(name) for name in kwargs}
    if isinstance(module, torch.nn.Module):
        parameters = inspect.signature(module.forward).parameters.values()
        places = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        called |= {f"args.{at}": name for at, name in enumerate(places, first)}
    return called


def _names_in(local: Mapping[str, Any]) -> set[str]:
    """Names of arguments, and of all that the modules among them have."""
    tensors = {name for names in _names_of_tensors(local).values() for name in names}
    modules = {name for module in _modules_in(local) for name, _ in module.named_modules(remove_duplicate=False)}
    return {*local, *_arguments_called(local).values(), *tensors, *modules}


def _modules_in(local: Mapping[str, Any]) -> list[torch.nn.Module]:
    args = local.get("args")
    values = (*local.values(), *(args if isinstance(args, tuple) else ()))
    return [value for value in values if isinstance(value, torch.nn.Module)]


def _names_of_tensors(local: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """All names of the tensor that has a name: of arguments, and of what modules among them have."""
    args, kwargs, called = local.get("args"), local.get("kwargs"), _arguments_called(local)
    given = [*local.items()]
    given += [(f"args.{at}", value) for at, value in enumerate(args if isinstance(args, tuple) else ())]
    given += [(f"kwargs.{name}", value) for name, value in (kwargs.items() if isinstance(kwargs, dict) else ())]
    named = [(called.get(name, name), value) for name, value in given]
    for module in _modules_in(local):
        named += [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    by_tensor: dict[int, list[str]] = {}
    for name, value in named:
        if isinstance(value, torch.Tensor) and name not in by_tensor.get(id(value), ()):
            by_tensor.setdefault(id(value), []).append(name)
    return {name: (name, *(one for one in names if one != name)) for names in by_tensor.values() for name in names}
