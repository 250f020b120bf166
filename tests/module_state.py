"""What of a module's source can hold more after a call than before, and which private attributes it reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator

MUTATORS = {"add", "append", "extend", "insert", "popitem", "setdefault", "update"}
COUNTERS = {"ChainMap", "Counter", "OrderedDict", "WeakKeyDictionary", "WeakSet", "WeakValueDictionary"}
COUNTERS |= {"count", "cycle", "defaultdict", "deque"}
CONTAINERS = COUNTERS | {"dict", "list", "set"}
DISPLAYS = (ast.Dict, ast.DictComp, ast.List, ast.ListComp, ast.Set, ast.SetComp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def last_name(node: ast.expr) -> str:
    """``c`` of ``a.b.c``, ``a.b.c(...)`` and ``a.b.c[...](...)``."""
    while isinstance(node, (ast.Call, ast.Subscript)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def inside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    for function in (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)):
        yield from ast.walk(function)


def changed_in_functions(tree: ast.Module) -> set[str]:
    """Names of containers that functions put something into."""
    found: set[str] = set()
    for node in inside_functions(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            found.add(last_name(node.func.value))
        elif isinstance(node, ast.Assign):
            found |= {last_name(target.value) for target in node.targets if isinstance(target, ast.Subscript)}
        elif isinstance(node, ast.AugAssign):
            found.add(last_name(node.target))
    return found


def assigned(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for node in body:
        if isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value


def growing_names(tree: ast.Module) -> set[str]:
    """Names of a module and its classes that can hold more and more: containers that functions put something into,
    counters, globals that functions assign to, and functions whose results are kept by their arguments."""
    changed = changed_in_functions(tree)
    found = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]:
        for name, value in assigned(scope.body):
            made_by = last_name(value) if isinstance(value, ast.Call) else ""
            is_container = isinstance(value, DISPLAYS) or made_by in CONTAINERS
            if made_by in COUNTERS or (is_container and name in changed):
                found.add(name)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            keeps = any(last_name(one) in ("cache", "lru_cache") for one in node.decorator_list)
            if keeps and ast.unparse(node.args):
                found.add(node.name)
    return found


def defined_names(tree: ast.Module) -> set[str]:
    """Names that a module gives to something of its own."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and last_name(node.value) == "self":
            found.add(node.attr)
    return found


def private_attributes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Where private attributes of other objects are read, and their names; operators are names of torch's table."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls", "aten", "compat.aten"):
            name = node.attr
        elif isinstance(node, ast.Call) and last_name(node.func) in ("getattr", "hasattr", "setattr", "attrgetter"):
            constants = [one.value for one in node.args if isinstance(one, ast.Constant) and type(one.value) is str]
            name = next((one for one in constants if one.startswith("_")), "")
        else:
            continue
        if name.startswith("_") and not name.startswith("__"):
            yield node.lineno, name


def classes_by_text(tree: ast.Module) -> Iterator[int]:
    """Where the name of an object's class is compared with a text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            texts = any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides)
            named = any(ast.unparse(side).startswith("type(") and "__name__" in ast.unparse(side) for side in sides)
            if texts and named:
                yield node.lineno
