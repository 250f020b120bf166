"""Every public function called with something else than it takes: a coded error. Those whose remedy can be run are in
``remedies/``."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import helion
import helion.language as hl
import pytest
import torch

import tpu_lowering
from tpu_lowering import backend, errors
from tpu_lowering.__main__ import main
from tpu_lowering.ir.chips import CHIPS
from tpu_lowering.options import Options

X = torch.ones(16)
EVERY = ", ".join(chip.name for chip in CHIPS)


def model(x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
    return x * scale


def annotated(x: torch.Tensor) -> torch.Tensor:
    return x


def compiled(**options: Any) -> Any:
    torch.compiler.reset()
    return torch.compile(model, backend="helion_tpu", options=options)(X)


def error_of(call: Callable[[], Any]) -> errors.TpuLoweringError:
    with pytest.raises(Exception) as caught:
        call()
    error = getattr(caught.value, "inner_exception", caught.value)
    assert isinstance(error, errors.TpuLoweringError), repr(error)
    return error


aot, explain, op, register = (
    tpu_lowering.aot_compile,
    tpu_lowering.explain,
    tpu_lowering.kernel_op,
    tpu_lowering.register_kernel,
)
CALLS: dict[str, tuple[Callable[[], Any], str, str]] = {
    # what is called: code, subject and reason
    "aot_compile of a number": (lambda: aot(model, 3), "TL112", "args: expected a tuple of the arguments, got int"),
    "aot_compile of a text": (lambda: aot(model, "xy"), "TL112", "args: expected a tuple of the arguments, got str"),
    "aot_compile of nothing": (lambda: aot(None, (X,)), "TL112", "fn: expected a function or module, got NoneType"),
    "aot_compile with too many": (lambda: aot(model, (X, 1.0, X)), "TL112", "arguments of model: expected arguments for model(x: 'torch.Tensor', scale: 'float' = 2.0) -> 'torch.Tensor', got too many positional arguments"),
    "aot_compile of a module": (lambda: aot(torch.nn.Linear(2, 2), ()), "TL112", "arguments of Linear.forward: expected arguments for Linear.forward(input: torch.Tensor) -> torch.Tensor, got missing a required argument: 'input'"),
    "aot_compile with kwargs": (lambda: aot(model, (X,), [1]), "TL112", "kwargs: expected a dictionary of keyword arguments, got list"),
    "aot_compile with numbers as names": (lambda: aot(model, (X,), {1: 2}), "TL112", "kwargs: expected a dictionary of keyword arguments, got dict"),
    "aot_compile for 3": (lambda: aot(model, (X,), target=3), "TL107", f"3: expected one of {EVERY}, or a topology such as 'v5e:2x4', got 3"),
    "aot_compile donating": (lambda: aot(model, (X,), donate="yes"), "TL112", "donate: expected True or False, got 'yes'"),
    "explain nothing": (lambda: explain(None, X), "TL112", "fn: expected a function or module, got NoneType"),
    "explain a further call": (lambda: explain(model, X, calls=[X]), "TL112", "args: expected a tuple of the arguments, got a tensor"),
    "explain for 3": (lambda: explain(model, X, target=3), "TL107", f"3: expected one of {EVERY}, or a topology such as 'v5e:2x4', got 3"),
    "explain with options": (lambda: explain(model, X, options=3), "TL102", "options: expected a dictionary of options by their names, got int"),
    "load nothing": (lambda: tpu_lowering.load(None), "TL109", "None: expected a file saved by TpuProgram.save, got TypeError: expected str, bytes or os.PathLike object, not NoneType"),
    "kernel_op of a number": (lambda: op(3), "TL208", "kernel_op: expected the operator's name, got 3"),
    "kernel_op above a number": (lambda: op("wrong::a")(3), "TL208", "wrong::a: expected a function, got int"),
    "kernel_op that mutates 3": (lambda: op("wrong::c", mutates_args=3), "TL208", "wrong::c: expected mutates_args as a tuple of names, got 3"),
    "kernel_op that mutates numbers": (lambda: op("wrong::d", mutates_args=(3,)), "TL208", "wrong::d: expected mutates_args as a tuple of names, got (3,)"),
    "kernel_op with a backward": (lambda: op("wrong::e", backward=3), "TL208", "wrong::e: expected backward as a function, got 3"),
    "kernel_op with a context": (lambda: op("wrong::f", setup_context=3), "TL208", "wrong::f: expected setup_context as a function, got 3"),
    "kernel_op with types": (lambda: op("wrong::g", fake=X.shape), "TL208", "wrong::g: expected fake as a function, got torch.Size([16])"),
    "register_kernel without parentheses": (lambda: register(annotated), "TL208", "register_kernel: expected an operator of torch, got the function annotated"),
    "register_kernel above a number": (lambda: register(torch.ops.aten.sinc)(3), "TL208", "aten.sinc.default: expected a function, got int"),
    "Options of a number": (lambda: Options.create(3), "TL102", "options: expected a dictionary of options by their names, got int"),
    "Options by number": (lambda: Options.create({3: 1}), "TL101", "3: expected one of verify, poison, passes, fallback, cpu_kernels, random, fuse, tune, tune_seconds, dump, cache, cache_bytes, buckets, device, mesh, shardings, got 3"),
    "Options without room": (lambda: Options(cache_bytes=0), "TL102", "'cache_bytes': expected a positive number of bytes, got 0"),
    "Options before now": (lambda: Options(tune_seconds=-1), "TL102", "'tune_seconds': expected a number of seconds, got -1"),
    "Options in no folder": (lambda: Options(cache="a\0b"), "TL102", "'cache': expected the name of a folder, got 'a\\x00b'"),
    "passes.apply of nothing": (lambda: tpu_lowering.passes.apply(None), "TL112", "graph: expected a torch.fx.GraphModule, or the graph of one, got NoneType"),
    "passes.apply of a graph alone": (lambda: tpu_lowering.passes.apply(torch.fx.Graph()), "TL112", "graph: expected a torch.fx.GraphModule, or the graph of one, got one without a module"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_with_other_arguments(name: str) -> None:
    call, code, text = CALLS[name]
    refusal = error_of(call).refusal
    assert (refusal.code, f"{refusal.subject}: {refusal.reason}") == (code, text)
    assert refusal.remedy


ANYTHING = (
    None,
    True,
    3,
    -1.5,
    "text",
    b"bytes",
    [],
    {},
    (),
    object(),
    X,
    torch.float32,
    annotated,
    {3: 4},
    float("nan"),
)


@pytest.mark.parametrize("option", Options.names())
@pytest.mark.parametrize("value", ANYTHING, ids=lambda value: type(value).__name__)
def test_an_option_of_any_type(option: str, value: Any) -> None:
    """It is taken as it is, or refused by a code."""
    try:
        Options.create({option: value})
    except errors.TpuLoweringError as error:
        assert error.code in ("TL101", "TL102")


@pytest.mark.parametrize("value", ANYTHING, ids=lambda value: type(value).__name__)
def test_public_functions_of_any_type(value: Any) -> None:
    for call in (
        lambda: aot(value, (X,), target="v9"),
        lambda: aot(model, value, target="v9"),
        lambda: aot(model, (X,), target=value) if value != "text" else aot(model, (X,), target="v9"),
        lambda: tpu_lowering.load(value),
        lambda: op(value)(annotated) if value != "text" else op(3),
        lambda: register(value),
        lambda: tpu_lowering.passes.apply(value),
    ):
        assert error_of(call).code in ("TL107", "TL109", "TL112", "TL208")


# Folders ----------------------------------------------------------------------------------------------
def test_a_dump_below_a_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder, why in ((tmp_path / "file" / "below", "Not a directory"), (tmp_path / "file", "File exists")):
        assert str(error_of(lambda folder=folder: compiled(dump=str(folder)))) == (
            "[TL102] option has the wrong type or value: 'dump'\n"
            f"  why  expected a folder that can be written to, got '{folder}': {why}\n"
            "  fix  pass another folder as options['dump']"
        )


def test_a_home_and_a_path_are_folders(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    compiled(cache="~/kept", dump=pathlib.Path("~/dumped"))
    assert sorted(os.listdir(tmp_path)) == ["dumped", "kept"]
    assert Options(cache="~/kept").cache == str(tmp_path / "kept")


# Kernels ----------------------------------------------------------------------------------------------
@op("wrong::raises")
def raises(x: torch.Tensor) -> torch.Tensor:
    raise ValueError("no such thing")


@op("wrong::nothing")
def nothing(x: torch.Tensor) -> torch.Tensor:
    return None  # type: ignore[return-value]


@op("wrong::text")
def text(x: torch.Tensor) -> torch.Tensor:
    return "text"  # type: ignore[return-value]


@op("wrong::pair")
def pair(x: torch.Tensor) -> torch.Tensor:
    return x, x  # type: ignore[return-value]


@op("wrong::branches")
def branches(x: torch.Tensor) -> torch.Tensor:
    return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("operator", "code", "reason"),
    [
        (raises, "TL206", "expected a function that JAX can trace, got ValueError: no such thing"),
        (nothing, "TL202", "expected 1 result of its own, got 0"),
        (text, "TL202", "expected arrays of JAX's as results, got 'text'"),
        (pair, "TL202", "expected 1 result of its own, got 2"),
        (
            branches,
            "TL206",
            "expected a function that JAX can trace, got TracerBoolConversionError: Attempted boolean ",
        ),
    ],
    ids=lambda value: str(value),
)
def test_a_kernel_with_a_result_that_fails_while_it_is_traced(operator: Any, code: str, reason: str) -> None:
    """In eager torch, and while Dynamo asks for its type, whose error holds the text."""
    refusal = error_of(lambda: operator(X)).refusal
    assert refusal.code == code and refusal.reason.startswith(reason)
    assert refusal.where.startswith(__file__)
    torch.compiler.reset()
    with pytest.raises(Exception, match=rf"\[{code}\]"):
        torch.compile(lambda x: operator(x) + 1, backend="helion_tpu", fullgraph=True)(X)


@op("wrong::without_tensors")
def without_tensors(count: int) -> torch.Tensor:
    return torch.ones(count).numpy() * 2


def test_a_kernel_without_tensor_arguments() -> None:
    import jax.numpy as jnp

    ones = op("wrong::ones")(_ones(jnp))
    torch.compiler.reset()
    result = torch.compile(lambda x: ones(3) + x[:3], backend="helion_tpu", fullgraph=True)(X)
    assert result.tolist() == [2.0, 2.0, 2.0]


def _ones(jnp: Any) -> Callable[..., Any]:
    def ones(count: int) -> torch.Tensor:
        return jnp.ones(count, jnp.float32)

    return ones


@helion.kernel(config=helion.Config(block_sizes=[8]), static_shapes=True, backend="pallas")
def add_one(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size(0)):
        out[tile] = x[tile] + 1


HELION = {
    "too few": (lambda x: add_one(x), "missing a required argument: 'out'"),
    "too many": (lambda x: add_one(x, torch.empty_like(x), x), "too many positional arguments"),
    "by another name": (lambda x: add_one(x, result=x), "missing a required argument: 'out'"),
    "twice": (lambda x: add_one(x, torch.empty_like(x), x=x), "multiple values for argument 'x'"),
}


@pytest.mark.parametrize("name", HELION)
def test_a_helion_kernel_with_other_arguments(name: str) -> None:
    call, message = HELION[name]
    assert backend.entry_point is None  # as torch loads it
    torch.compiler.reset()
    with pytest.raises(Exception) as caught:
        torch.compile(call, backend="helion_tpu", fullgraph=True)(X)
    lines = str(caught.value).splitlines()
    start = next(at for at, line in enumerate(lines) if "[TL217]" in line)
    assert lines[start].endswith("[TL217] kernel called with other arguments than it takes: add_one")
    assert f"{__file__}:" in lines[start + 1] and f'in <lambda>: "{name}": (lambda x: add_one(x' in lines[start + 1]
    signature = "add_one(x: 'torch.Tensor', out: 'torch.Tensor') -> 'None'"
    assert lines[start + 2] == f"  why  expected a call of {signature}, got {message}"
    assert lines[start + 3] == "  fix  pass each argument of the kernel once"


def test_a_helion_kernel_with_a_number_for_a_tensor() -> None:
    assert backend.entry_point is None
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"\[TL206\] kernel cannot be traced to JAX: add_one"):
        torch.compile(lambda x: add_one(x, 3), backend="helion_tpu", fullgraph=True)(X)


# Commands ---------------------------------------------------------------------------------------------
SCRIPT = """
import torch
def model(x): return x + 1
def example_inputs(): return torch.ones(2)
def broken(): raise ValueError("no inputs")
number = 3
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["explain", "nowhere.py:model"], "TL106"),
        (["explain", "model"], "TL106"),
        (["explain", ""], "TL106"),
        (["explain", "{folder}:model"], "TL106"),
        (["explain", "{script}:nothing"], "TL106"),
        (["explain", "{script}:number"], "TL106"),
        (["explain", "{syntax}:model"], "TL106"),
        (["explain", "{raising}:model"], "TL106"),
        (["explain", "{text}:model"], "TL106"),
        (["explain", "{inputs}:model"], "TL106"),
        (["explain", "{two}:model"], "TL112"),
        (["tune", "{script}:model", "--target", "v9"], "TL107"),
        (["tune", "nowhere.py:model"], "TL106"),
        (["tune", "{script}:model", "--seconds", "-1"], "TL102"),
        (["tune", "{script}:model", "--cache", "a\0b"], "TL102"),
        (["demo", "--length", "0"], "TL102"),
        (["demo", "--length", "1000"], "TL102"),
    ],
)
def test_commands(arguments: list[str], code: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "script": SCRIPT,
        "syntax": "def model(:",
        "raising": "import nowhere_at_all",
        "inputs": SCRIPT.replace("return torch.ones(2)", "raise ValueError(3)"),
        "two": SCRIPT.replace("return torch.ones(2)", "return 1, 2"),
    }
    for name, contents in files.items():
        (tmp_path / f"{name}.py").write_text(contents)
    (tmp_path / "text.txt").write_text(SCRIPT)
    places = {name: str(tmp_path / f"{name}.py") for name in files}
    given = [one.format(folder=tmp_path, text=tmp_path / "text.txt", **places) for one in arguments]
    assert main(given) == 1
    assert capsys.readouterr().err.startswith(f"[{code}] ")
