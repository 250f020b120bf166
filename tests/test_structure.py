"""Laws of the source tree: imports point one way, private names are looked up in one place, files stay short."""

from __future__ import annotations

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import pytest

from tests import module_state

ROOT = pathlib.Path(__file__).parent.parent / "tpu_lowering"
ORDER = (
    "ir",
    "analyse",
    "kernels",
    "normalise",
    "passes",
    "bridge",
    "lower",
    "codegen",
    "fuse",
    "runtime",
    "capture",
    "report",
)
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
# `lower` takes the refusal of an operator without implementation from `normalise`; `codegen` and `report` are told
# of by `pipeline`, which belongs to no folder.
FREE = {"errors", "compat", "options"}
PUBLIC = {("passes", "bridge")}  # `passes.apply` is the public name of what `bridge` does


def imports(path: pathlib.Path) -> list[str]:
    """Every module that a file imports, by full name."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != ROOT], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: pathlib.Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    if folder not in ORDER:
        assert folder in ("demo", "compat")
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "tpu_lowering" and len(parts) > 1 and parts[1] in ORDER:
            if path.name == "__init__.py" and (folder, parts[1]) in PUBLIC:
                continue
            assert ORDER.index(parts[1]) <= ORDER.index(folder), f"{folder} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_private_modules_are_imported_in_compat_alone(path: pathlib.Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        private = parts[0] in ("torch", "jax", "helion") and any(part.startswith("_") for part in parts[1:])
        allowed = name.startswith(("torch.utils._pytree",)) or path.parent.name == "compat"
        assert allowed or not private, f"{path.name} imports {name}"


ROOMS_OF_FUSE = (
    "space",
    "xla",
    "rows",
    "long_rows",
    "around_kernels",
    "choose",
    "attention",
    "attention.dropout",
    "attention.training",
    "attention.paged",
    "heads",
    "",  # the passes
)


def room_of(module: str) -> str:
    """The room of a module of ``fuse``, by its full name; "" for the passes."""
    return module.removeprefix("tpu_lowering.fuse").rpartition(".")[0].removeprefix(".")


@pytest.mark.parametrize("path", [p for p in FILES if "fuse" in p.parts], ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_of_fuse_import_those_before_them(path: pathlib.Path) -> None:
    own = ROOMS_OF_FUSE.index(room_of(module_of(path)))
    for name in MODULES & set(imports(path)):
        if name.startswith("tpu_lowering.fuse.") and not (ROOT.parent / name.replace(".", "/")).is_dir():
            assert ROOMS_OF_FUSE.index(room_of(name)) <= own, f"{module_of(path)} imports {name}"


def module_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = set(map(module_of, FILES))


def test_no_module_needs_itself() -> None:
    """Imports of whole modules, at any place in them, run in no circle."""
    needs = {module_of(path): MODULES & set(imports(path)) - {module_of(path)} for path in FILES}
    circles = {name: wanted for name, wanted in needs.items() if name not in LATE}
    assert list(graphlib.TopologicalSorter(circles).static_order())


LATE = {
    "tpu_lowering": "public names are imported at their first use",
    "tpu_lowering.passes": "`passes.apply` is imported at its first use",
}
"""Modules whose imports are made later than their own, each with why."""

SIZES = {"file": 400, "function": 60, "folder": 20}
LARGE = {
    "ir": "the vocabulary: one concept a file",
    "kernels": "one adapter, or one fact of a kernel, a file",
    "normalise": "one form that AOTAutograd writes a file",
    "lower/aten": "one family of operators a file",
}
"""What is larger than ``SIZES``, each with why."""


def sizes() -> Iterator[tuple[str, str, int]]:
    """Kind, name and size of every file, function and folder."""
    for path, tree in TREES.items():
        name = str(path.relative_to(ROOT))
        yield "file", name, len(path.read_text().splitlines())
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield "function", f"{name}:{node.name}", (node.end_lineno or 0) - node.lineno + 1
    for folder in {path.parent for path in FILES}:
        yield "folder", str(folder.relative_to(ROOT)), len(list(folder.glob("*.py")))


def test_what_is_large_has_a_reason() -> None:
    large = {name for kind, name, size in sizes() if size > SIZES[kind]}
    assert large - LARGE.keys() == set()
    assert LARGE.keys() - large == set(), "is in the table and no longer large"


def test_no_file_is_called_utils() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "misc", "common")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: pathlib.Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), f"{path} has no docstring"


GROWING = {
    # tables in which something is registered for good
    "analyse.padding.calls.RULES": "rules for padding, entered when their modules are imported",
    "lower.table.TABLE": "the lowering table, entered when its modules are imported",
    "lower.table.DRAWS": "the lowering table of random operators",
    "lower.table.RULES": "the lowering table of operators by the names of their rules",
    "kernels.registry._implementations": "the user's kernels, for as long as torch has their operators",
    "kernels.registry._of_libraries": "our kernels for operators of other libraries: a fixed list",
    "kernels.operators._libraries": "torch forgets an operator with its library object",
    "bridge.fresh_operators._made": "operators that graphs of other backends call by name, for as long as torch has them",
    "bridge.fresh_operators._libraries": "torch forgets an operator with its library object",
    # what has a bound of its own
    "compat.of_executables._quick_put": "one entry a device",
    "runtime.device_memory._memories": "one entry a device; what it holds goes with the tensors' storages",
    "runtime.owned_memory._known": "one entry for a moved buffer; goes with the tensor's storage",
    "kernels.interpreter_findings._found": "what one run of a program showed: empty before and after",
    "releases.warn_of_untested": "one entry a runtime: each is warned of once in a process",
    # single values
    "backend._numbers": "the number of the next graph",
    "fuse.space.spaces._numbers": "the number of the next dimension",
    "ir.forks._is_owner": "whether this is the process that ran JAX first",
    "ir.forks._owner": "the process that ran JAX first",
}
"""Names that hold more after a compilation than before it, other than a ``session.Cache``, each with why."""

OF_PYTHON = {"_fields", "_exit"}  # of named tuples, and of os: documented, in spite of their names


def test_what_grows_after_import_is_in_the_session() -> None:
    found = {
        f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.{name}"
        for path, tree in TREES.items()
        for name in module_state.growing_names(tree)
    }
    assert found - GROWING.keys() == set(), "declare a session.Cache, with a bound and a reason"
    assert GROWING.keys() - found == set(), "is in the table and no longer in the package"


def test_private_attributes_are_read_in_compat_alone() -> None:
    ours = {
        name for path, tree in TREES.items() if "compat" not in path.parts for name in module_state.defined_names(tree)
    }
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path, tree in TREES.items()
        if "compat" not in path.parts
        for line, name in module_state.private_attributes(tree)
        if name not in ours | OF_PYTHON
    ]
    assert found == []


def test_no_class_is_told_by_the_text_of_its_name() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path, tree in TREES.items()
        if "compat" not in path.parts
        for line in module_state.classes_by_text(tree)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("kept = {}\ndef f(x):\n    kept[x] = 1", {"kept"}),
        ("kept: list[int] = []\ndef f(x):\n    kept.append(x)", {"kept"}),
        ("TABLE = {1: 2}\ndef f(x):\n    return TABLE[x]", set()),
        ("TABLE = {}\nTABLE[1] = 2", set()),
        ("kept = weakref.WeakKeyDictionary()", {"kept"}),
        ("numbers = itertools.count()", {"numbers"}),
        ("class A:\n    kept = set()\n    def f(self, x):\n        self.kept.add(x)", {"kept"}),
        ("@functools.cache\ndef f(x): ...", {"f"}),
        ("@functools.lru_cache(maxsize=4)\ndef f(*, x): ...", {"f"}),
        ("@functools.cache\ndef f(): ...", set()),
        ("last = None\ndef f(x):\n    global last\n    last = x", {"last"}),
    ],
)
def test_what_grows_is_found(source: str, found: set[str]) -> None:
    assert module_state.growing_names(ast.parse(source)) == found


def test_private_attributes_are_found() -> None:
    source = "op._schema\nself._own\naten._to_copy\ngetattr(op, '_version')\nop.__name__\nop.public"
    assert [name for _, name in module_state.private_attributes(ast.parse(source))] == ["_schema", "_version"]


def test_classes_by_text_are_found() -> None:
    assert list(module_state.classes_by_text(ast.parse("x = 1\nif type(x).__name__ == 'int': ..."))) == [2]
