"""Options, names and rules, without devices: what is taken, what it becomes, what is refused."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from tpu_lowering import TpuLoweringError, aot_compile, kernel_op
from tpu_lowering.capture import names
from tpu_lowering.ir.mesh import Mesh
from tpu_lowering.ir.types import f32
from tpu_lowering.kernels import sharding_rules
from tpu_lowering.options import Options

MESH = {"data": 4, "model": 2}


def refusal(**options: Any) -> str:
    with pytest.raises(TpuLoweringError) as caught:
        Options.create(options)
    return str(caught.value)


def test_tables_become_values() -> None:
    table = {"a.*": ("model", None), "b": [["data", "model"]], "c": ()}
    made = Options.create({"mesh": MESH, "shardings": table})
    assert made.mesh == (("data", 4), ("model", 2))
    assert made.shardings == (("a.*", (("model",), ())), ("b", (("data", "model"),)), ("c", ()))
    assert hash(made) == hash(Options(mesh=made.mesh, shardings=made.shardings)) != hash(Options())
    assert "('data', 4)" in repr(made) and "'a.*'" in repr(made)  # keys of caches are made of it


@pytest.mark.parametrize("value", [4, {"data": 0}, {"data": 2.0}, {"data": True}, {1: 2}, [("a", 2), ("a", 2)], None])
def test_values_that_are_no_mesh(value: Any) -> None:
    assert refusal(mesh=value) == (
        "[TL102] option has the wrong type or value: 'mesh'\n"
        f"  why  expected a dictionary from the names of axes to their sizes, such as {{'data': 4, 'model': 2}}, got {value!r}\n"
        "  fix  pass a dictionary from the names of axes to their sizes, such as {'data': 4, 'model': 2} as options['mesh']"
    )


@pytest.mark.parametrize("value", [4, ["x"], {1: ("data",)}, {"": ("data",)}])
def test_values_that_are_no_table(value: Any) -> None:
    assert refusal(mesh=MESH, shardings=value) == (
        "[TL102] option has the wrong type or value: 'shardings'\n"
        "  why  expected a dictionary from names to the axes of each dimension, such as {'layers.*.q_proj.weight': ('model', "
        f"None)}}, got {value!r}\n"
        "  fix  pass a dictionary from names to the axes of each dimension, such as {'layers.*.q_proj.weight': ('model', "
        "None)} as options['shardings']"
    )


@pytest.mark.parametrize("axes", ["data", None, (1,), ({"data"},), (("data", None),)])
def test_axes_that_are_none(axes: Any) -> None:
    assert refusal(mesh=MESH, shardings={"x": axes}) == (
        "[TL102] option has the wrong type or value: 'shardings', for 'x'\n"
        "  why  expected a tuple with the name of an axis, a tuple of names, or None for each dimension, got "
        f"{axes!r}\n"
        "  fix  write options['shardings']['x'] = ('axis', None)"
    )


def test_an_axis_that_the_mesh_does_not_have() -> None:
    assert refusal(mesh=MESH, shardings={"x": ("data", ("model", "expert"))}) == (
        "[TL711] axis that the mesh does not have: 'expert', of options['shardings']['x']\n"
        "  why  expected one of the axes 'data', 'model' of options['mesh'], got 'expert'\n"
        "  fix  name one of them, or give the mesh such an axis"
    )


def test_options_that_go_with_no_mesh() -> None:
    assert "expected a JAX platform, such as 'tpu' or 'cpu', together with a mesh, got 'cpu:1'" in refusal(
        mesh=MESH, device="cpu:1"
    )
    assert "because there are shardings, got {}" in refusal(shardings={"x": ("data",)})
    assert "expected 'error', because a program on a mesh is one graph, got 'eager'" in refusal(
        mesh=MESH, fallback="eager"
    )
    assert "expected each axis once, got ('data', 'data')" in refusal(mesh=MESH, shardings={"x": ("data", "data")})
    pytest.importorskip("libtpu", reason="needs libtpu, the TPU compiler")
    with pytest.raises(TpuLoweringError, match="expected no mesh, because a program is compiled ahead of time for one"):
        aot_compile(lambda x: x + 1, (torch.ones(8),), target="tpu7x", options={"mesh": MESH})


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("L['self']._modules['layers']._modules['0']._parameters['weight']", "layers.0.weight"),
        ("G['model']._buffers['scale']", "scale"),
        ("L['args'][0]._modules['model']._modules['norm']._parameters['weight']", "model.norm.weight"),
        ("L['trainer'].inner._modules['fc']._parameters['bias']", "fc.bias"),
        ("L['input_ids']", "input_ids"),
        ("L['batch']['ids']", "batch.ids"),
        ("L['args'][0]", "args.0"),
        ("L['x'].data", "x.data"),
        ("", ""),
    ],
)
def test_names_of_inputs(source: str, name: str) -> None:
    assert names.input_name(source) == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("L['self'].layers.0.mlp", "layers.0.mlp"),
        ("L['self']", ""),
        ("G['m']._modules['a']", "a"),
        ("L['args'][0].model.layers.1", "model.layers.1"),
        ("L['trainer'].inner.fc", "fc"),
    ],
)
def test_names_of_modules(path: str, name: str) -> None:
    assert names.Names((), ("L['trainer'].inner",)).module_name(path) == name


class Wrapped(torch.nn.Module):
    """As a library's model: its forward is behind a decorator, and has arguments that are not given."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def through(function: Any) -> Any:  # type: ignore[misc]
        return functools.wraps(function)(lambda *args, **kwargs: function(*args, **kwargs))

    @through
    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        return self.used(x) if scale is None else self.used(x) * scale


def found(function: Any, *args: Any, **kwargs: Any) -> names.Names:
    """The names of the graph of a call."""
    made: list[names.Names] = []

    def backend(module: Any, examples: Any) -> Any:
        made.append(names.Names.of(module))
        return module

    torch._dynamo.reset()
    torch.compile(function, backend=backend, fullgraph=True)(*args, **kwargs)
    return made[0]


def first_names(found_: names.Names) -> set[str]:
    return {each[0] for each in found_.inputs}


def test_names_of_a_call() -> None:
    x, model = torch.ones(4, 4), Wrapped()
    parameters = {"used.weight", "used.bias"}
    for found_ in (found(model, x), found(model, x=x)):
        assert first_names(found_) == {"x", *parameters}
        assert {"used", "unused", "unused.weight", "scale"} <= set(found_.known)  # not in the graph, but the function's
    assert first_names(found(lambda x: model(x), x)) == {"x", *parameters}
    assert first_names(found(model, x, scale=x.clone())) == {"x", "scale", *parameters}
    assert first_names(found(torch.nn.Linear(4, 4), x)) == {"input", "weight", "bias"}
    assert found(lambda x, unused: x + 1, x, x.clone()).known == ["unused", "x"]
    assert first_names(found(lambda batch: model(batch["x"]), {"x": x})) == {"batch.x", *parameters}


def test_one_tensor_of_several_names() -> None:
    x = torch.ones(4, 4)
    assert found(lambda x, y: x + y, x, x).inputs == (("x", "y"),)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert sorted(found(model, x).inputs) == [("0.weight", "1.weight"), ("input",)]
    assert found(model, input=x).inputs == found(model, x).inputs
    model.register_module("before", model[1])
    assert {"0.weight", "1.weight", "before.weight"} in map(set, found(model, x).inputs)


SCHEMA = torch.ops.aten.add_.Tensor._schema  # add_(Tensor(a!) self, Tensor other, *, Scalar alpha) -> Tensor(a!)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (3, "expected a text such as 'i j, j k -> i k', got 3"),
        ("i j", "expected a text such as 'i j, j k -> i k', got 'i j'"),
        ("i j, i 2 -> i j", "expected names of dimensions, separated by spaces, got '2' in 'i j, i 2 -> i j'"),
        ("i i, i j -> i j", "expected another name for each dimension of a term, got 'i i'"),
        ("i j, i j -> i k", "expected names that are left of the arrow too, got 'k' in 'i j, i j -> i k'"),
        ("i j -> i j", "expected a term for each of self, other, got 1 in 'i j -> i j'"),
        ("i j, i j -> j i", "expected 'i j' as the term of the new value of self, got 'j i' in 'i j, i j -> j i'"),
    ],
)
def test_texts_that_are_no_rules(text: Any, why: str) -> None:
    with pytest.raises(TpuLoweringError) as caught:
        sharding_rules.parse(text, SCHEMA, "here.py:3 in f")
    assert str(caught.value) == (
        "[TL715] sharding rule that does not fit a kernel: sharding of aten::add_\n"
        "  at   here.py:3 in f\n"
        f"  why  {why}\n"
        "  fix  write a term for each tensor argument, '->', and one for each value that the function returns; a term has "
        "a name for each dimension, or _ for one that must be whole"
    )


def test_a_wrong_rule_registers_nothing() -> None:
    for sharding in ("i -> k", "i -> i"):
        made = kernel_op("tables::twice" if sharding == "i -> i" else "tables::wrong", sharding=sharding)
        if sharding == "i -> i":
            assert made(twice) is torch.ops.tables.twice.default
        else:
            with pytest.raises(TpuLoweringError, match="TL715"):
                made(twice)


def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_how_a_rule_splits() -> None:
    mesh = Mesh(("data", "model"), (4, 2), tuple(range(8)))
    rule = sharding_rules.parse("i j, j k -> i k", torch.ops.aten.mm.default._schema, "")
    types = (f32[8, 6], f32[6, 4])

    def split(*known: Any) -> Any:
        return rule.split(types, known, mesh)

    assert split((("data",),), ((), ("model",))) == {"i": ("data",), "k": ("model",)}
    assert split((("data",), ("model",)), (("model",), ())) == {"i": ("data",)}  # j is summed over
    assert split((("data",),), ((), ("data",))) == {"i": ("data",)}  # an axis splits one name
    assert split(None, ((), ("model",))) == {"k": ("model",)}
    assert split(None, ((), (("data", "model")))) == {}  # 4 columns on 8 devices
    assert sharding_rules.axes_of(("i", "k"), split((("data",),), None)) == (("data",), ())
