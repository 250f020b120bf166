"""Operators that make what another operator writes: destination-passing operators as functional ones.

Of ``ns::exp_into(Tensor x, Tensor(a!) out) -> ()`` and the wish for a fresh ``out`` comes::

    tpu_lowering::ns_exp_into_fresh_out(Tensor x, *, SymInt[] size_0, SymInt[]? stride_0, ScalarType dtype_0,
                                        Device device_0) -> Tensor

It allocates, calls the operator, and returns the allocation. What it allocates are bases: whole pieces of memory, of
which the operator is given all, a slice or a strided view, several arguments of one base if need be. Arguments that
are not fresh stay as they are, mutable ones too.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from tpu_lowering import compat
from tpu_lowering.ir import arguments
from tpu_lowering.ir.functionalized_calls import BaseView, BaseViews, flat, mapped

aten = compat.aten
NAMESPACE = "tpu_lowering"


@dataclasses.dataclass(frozen=True)
class FreshForm:
    """Which arguments of an operator are fresh, and of how many bases.

    Attributes:
        overload: the operator.
        views: for each fresh argument, by name, what it is of the bases, without numbers: those are arguments.
        bases: how many bases there are.
    """

    overload: compat.OpOverload
    views: tuple[tuple[str, BaseViews], ...]
    bases: int

    def flat(self) -> list[BaseView]:
        """The views in order."""
        return [view for _, views in self.views for view in flat(views)]

    def arguments(self, tensors: Iterator[torch.Tensor]) -> dict[str, Any]:
        """The fresh arguments, from the tensors behind ``flat()``."""
        return {name: mapped(views, lambda view: next(tensors)) for name, views in self.views}


_lock = threading.Lock()
_made: dict[Any, compat.OpOverload] = {}
_libraries: list[torch.library.Library] = []


def fresh_operator(form: FreshForm) -> compat.OpOverload:
    """The operator of a form; made at the first call, and the same ever after."""
    names = "_".join(name for name, _ in form.views)
    wanted = re.sub(r"\W+", "_", form.overload.name().removesuffix(".default")) + f"_fresh_{names}"
    tags = [tag for tag in form.overload.tags if tag is not torch.Tag.out]
    return define(form, wanted, schema_of(form), tags, lambda overload: _implementation(form, overload))


def define(
    key: Any, wanted: str, schema: str, tags: Sequence[torch.Tag], implement: Callable[[compat.OpOverload], Any]
) -> compat.OpOverload:
    """The operator of a key; defined at the first call, and the same ever after.

    Args:
        key: what tells it apart.
        wanted: its name; a number follows if another one has it.
        schema: from the first parenthesis on.
        tags: torch's tags.
        implement: gives the function that runs it, on real tensors and fake ones.
    """
    with _lock:
        if key not in _made:
            taken = {compat.schema(other).name.partition("::")[2] for other in _made.values()}
            names = itertools.chain([wanted], (f"{wanted}_{i}" for i in itertools.count(1)))
            name = next(name for name in names if name not in taken)
            library = torch.library.Library(NAMESPACE, "FRAGMENT")
            library.define(name + schema, tags=tags)
            _libraries.append(library)
            overload: compat.OpOverload = getattr(getattr(torch.ops, NAMESPACE), name).default
            run = implement(overload)
            library.impl(name, run, "CompositeExplicitAutograd")
            torch.library.register_fake(f"{NAMESPACE}::{name}", run, lib=library)
            _made[key] = overload
        return _made[key]


def schema_of(form: FreshForm) -> str:
    """The schema of a form's operator, from its first parenthesis on."""
    text = str(compat.schema(form.overload))
    given, _, returned = text[text.index("(") + 1 :].rpartition(") -> ")
    fresh = {name for name, _ in form.views}
    kept = [argument for argument in _split(given) if _name(argument) not in fresh]
    while kept and kept[-1] == "*":
        kept.pop()
    own = _split(returned[1:-1] if returned.startswith("(") else returned)
    made = [described_memory(index) for index in range(form.bases)]
    views = [f"SymInt[] view_{i}" for i, view in enumerate(form.flat()) if view.how != "whole"]
    every = [*kept, *(["*"] if "*" not in kept else []), *made, *views]
    results = [*own, *["Tensor"] * form.bases]
    return f"({', '.join(every)}) -> {results[0] if len(results) == 1 else '(' + ', '.join(results) + ')'}"


def _split(text: str) -> list[str]:
    """The items of a schema's list: split at commas outside of brackets and quotes."""
    items = re.findall(r"""(?:[^,()\[\]"']|\([^()]*\)|\[[^\[\]]*\]|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')+""", text)
    return [item.strip() for item in items if item.strip()]


def _name(argument: str) -> str:
    """The name in ``Tensor(a!)[] outs`` or ``float eps=1e-05``."""
    declared = re.match(r"[^=]*?(\w+)\s*(=|$)", argument)
    return declared.group(1) if declared else argument


def _implementation(form: FreshForm, overload: compat.OpOverload) -> Any:
    views, own = form.flat(), len(compat.schema(form.overload).returns)
    kept = [
        argument.name for argument in compat.schema(form.overload).arguments if argument.name not in dict(form.views)
    ]

    def run(*args: Any, **kwargs: Any) -> Any:
        bound = arguments.bind(compat.schema(overload), args, kwargs)
        bases = [allocate(bound, index) for index in range(form.bases)]
        numbered = (
            dataclasses.replace(view, numbers=tuple(bound.get(f"view_{i}", ()))) for i, view in enumerate(views)
        )
        tensors = (view.of(bases[view.base]) for view in numbered)
        results = form.overload(**{name: bound[name] for name in kept}, **form.arguments(tensors))
        made = (*(results if own > 1 else (results,) * own), *bases)
        return made[0] if len(made) == 1 else made

    return run


def described_memory(index: int) -> str:
    """The arguments of a schema that describe a base."""
    return f"SymInt[] size_{index}, SymInt[]? stride_{index}, ScalarType dtype_{index}, Device device_{index}"


def allocate(bound: Mapping[str, Any], index: int) -> torch.Tensor:
    """The base that arguments describe; row-major if they give no strides."""
    size, stride, dtype, device = (bound[f"{part}_{index}"] for part in ("size", "stride", "dtype", "device"))
    if stride is None:
        return torch.empty(size, dtype=dtype, device=device)
    return torch.empty_strided(size, stride, dtype=dtype, device=device)
