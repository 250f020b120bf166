"""Dotted names in docstrings, such as ``runtime.padded.PaddedLayout``, against what the package's modules hold."""

from __future__ import annotations

import ast
import pathlib
import re
from collections.abc import Iterator

OUTSIDE = {
    "aten",
    "functools",
    "helion",
    "jax",
    "jnp",
    "numpy",
    "os",
    "pl",
    "pltpu",
    "prims",
    "torch",
    "torch_xla",
    "tpu_lowering",
}
"""First parts of names of libraries, and of the loggers."""
EXAMPLES = {"error.refusal"}
NAMED = re.compile(r"``([a-zA-Z_]\w*(?:\.\w+)+)(?:\(\))?``")
FILES = ("bin", "cpp", "hlo", "py")


class Index:
    """What each module of a package mentions by name: what it defines, imports, takes and reads.

    Names are looked up by the end of a module's path: ``padding.layouts`` is ``analyse.padding.layouts``.
    """

    def __init__(self, root: pathlib.Path) -> None:
        self.trees = {path: ast.parse(path.read_text()) for path in sorted(root.rglob("*.py"))}
        self.modules = {
            ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"): path
            for path in self.trees
        }
        self.names = {path: set(_names(tree)) for path, tree in self.trees.items()}

    def unknown(self) -> Iterator[tuple[pathlib.Path, str]]:
        """Names that nothing has, each with its file."""
        for path, tree in self.trees.items():
            for text in _texts(tree):
                for name in NAMED.findall(text):
                    if not self._is_known(name, path):
                        yield path, name

    def _is_known(self, name: str, path: pathlib.Path) -> bool:
        first, *rest = name.split(".")
        if first in OUTSIDE or name in EXAMPLES or rest[-1] in FILES:
            return True
        parts = [first, *rest]
        for count in range(len(parts), 0, -1):
            found = self._modules(".".join(parts[:count]))
            if found:
                return count == len(parts) or any(parts[count] in self.names[module] for module in found)
        holders = [names for names in self.names.values() if first in names] if first[0].isupper() else []
        return first in self.names[path] or any(rest[0] in names for names in holders)

    def _modules(self, name: str) -> list[pathlib.Path]:
        return [path for module, path in self.modules.items() if module == name or module.endswith(f".{name}")]


def _texts(tree: ast.Module) -> Iterator[str]:
    """Docstrings, those of constants too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def _names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).rpartition(".")[2]
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
