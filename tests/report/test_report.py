"""``explain`` and its report, the commands, and the dump folder."""

from __future__ import annotations

import json
import logging
import pathlib

import helion
import helion.language as hl
import pytest
import torch

import tpu_lowering
from tests.processes import forked
from tpu_lowering.__main__ import main
from tpu_lowering.demo import model as model_of_demo

EXPECTED = """\
╭───────────── tpu_lowering ──────────────╮
│ One XLA program. No allocation is left. │
╰─────────────────────────────────────────╯"""


@helion.kernel(config=helion.Config(block_sizes=[8, 128]), static_shapes=True, backend="pallas")
def exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size()):
        out[tile] = torch.exp(x[tile])


@helion.kernel(config=helion.Config(block_sizes=[8, 128]), static_shapes=True, backend="pallas")
def add_to(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size()):
        out[tile] = out[tile] + x[tile]


def model(x):
    out = torch.empty_like(x)
    exp_into(x * 2, out)
    return out + 1


def keeps_a_fill(x):
    total = torch.zeros_like(x)
    add_to(x, total)
    return total


def drops_a_fill(x):
    out = torch.zeros_like(x)
    exp_into(x, out)
    return out


def loads_undefined_memory(x):
    out = torch.empty_like(x)
    add_to(x, out)
    return out


X = torch.ones(16, 256)
NBYTES = 16 * 256 * 4


def test_counts_of_the_main_job() -> None:
    report = tpu_lowering.explain(model, X)
    assert (report.programs_before, report.programs_after) == (3, 1)
    assert (report.allocations_removed, report.fills_removed, report.kernel_calls) == (1, 0, 1)
    assert report.bytes_saved == 2 * NBYTES  # the allocation was written, the aliased operand fetched
    assert report.allocations_kept == report.aliases_kept == report.notes == ()
    assert [buffer.node for buffer in report.removed] == ["empty_like"]
    assert report.removed[0].where == "test_report.py:38 in model: out = torch.empty_like(x)"


def test_prints_as_tables() -> None:
    text = str(tpu_lowering.explain(model, X))
    assert text.startswith(EXPECTED)
    assert "│ programs (torch_tpu's split rule) │          3 │        1 │" in text
    assert "│ bytes to fill and fetch these     │   32.0 KiB │      0 B │" in text
    assert "\nRemoved: empty_like, 16.0 KiB, test_report.py:38 in model: out = torch.empty_like(x)" in text


def test_equal_lines_are_printed_once() -> None:
    def layers(x):
        for _ in range(3):
            x = model(x)
        return x

    text = str(tpu_lowering.explain(layers, X))
    assert text.count("Removed: ") == 1
    assert "\nRemoved: 3 × empty_like, 48.0 KiB, test_report.py:38 in model: out = torch.empty_like(x)" in text


def test_a_kept_fill_says_why() -> None:
    report = tpu_lowering.explain(keeps_a_fill, X)
    (kept,) = report.allocations_kept
    assert (kept.code, kept.node, kept.nbytes) == ("TL501", "full_default", NBYTES)
    assert kept.where == "test_report.py:44 in keeps_a_fill: total = torch.zeros_like(x)"
    assert kept.reason == "add_to: the body loads it before it has stored every element"
    assert kept.remedy == "nothing to do if the kernel should read it; else write every element before loading any"
    assert "[TL501]" in str(report)
    assert report.bytes_saved == 0
    assert report.bytes_left == 2 * NBYTES  # filled, and fetched by the kernel
    assert "│ bytes to fill and fetch these     │   32.0 KiB │ 32.0 KiB │" in str(report)


def test_a_fill_that_is_overwritten_is_counted() -> None:
    report = tpu_lowering.explain(drops_a_fill, X)
    assert (report.fills_removed, report.allocations_removed) == (1, 0)
    assert report.allocations_kept == ()
    assert report.bytes_saved == 2 * NBYTES


def test_a_kernel_that_loads_undefined_memory_is_remarked() -> None:
    report = tpu_lowering.explain(loads_undefined_memory, X)
    assert [note.code for note in report.notes] == ["TL504"]
    assert report.allocations_removed == 1


def test_mutated_inputs_are_not_allocations_and_stay_as_they_are() -> None:
    total = torch.ones(16, 256)
    report = tpu_lowering.explain(add_to_input, X, total)
    assert torch.equal(total, torch.ones(16, 256))
    assert report.allocations_kept == ()
    assert [buffer.code for buffer in report.aliases_kept] == ["TL501"]


def add_to_input(x, total):
    add_to(x, total)


def test_to_dict_is_ready_for_json() -> None:
    report = tpu_lowering.explain(keeps_a_fill, X)
    read = json.loads(json.dumps(report.to_dict()))
    assert read["allocations_kept"][0]["code"] == "TL501"
    assert read["programs_after"] == 1


def test_a_module_and_its_backward_are_explained_without_touching_it() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    report = tpu_lowering.explain(layer, torch.randn(8, 4))
    assert report.programs_after == 2
    assert [name.rpartition("_")[0] for name in report.programs] == ["forward", "backward"]
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(parameter.grad is None for parameter in layer.parameters())


def test_gradients_through_a_closure_are_explained_too() -> None:
    """The usual training function: the module is in a closure, and no argument requires a gradient."""
    layer, scale = torch.nn.Linear(4, 4), torch.ones(4, requires_grad=True)

    def loss(x, y):
        return ((layer(x) * scale - y) ** 2).mean()

    report = tpu_lowering.explain(loss, torch.randn(8, 4), torch.randn(8, 4))
    assert [name.rpartition("_")[0] for name in report.programs] == ["forward", "backward"]
    assert scale.grad is None
    assert all(parameter.grad is None for parameter in layer.parameters())


def activations(x, w, v):
    hidden = torch.tanh(x @ w)
    return torch.exp(hidden @ v).sum()


def test_what_is_saved_for_the_backward_is_listed_by_line() -> None:
    """Computed values alone: arguments are there anyway, and so are results."""
    x, w, v = torch.ones(16, 32), torch.ones(32, 64, requires_grad=True), torch.ones(64, 8, requires_grad=True)
    report = tpu_lowering.explain(activations, x, w, v)
    first = activations.__code__.co_firstlineno
    assert [(one.nbytes, one.where) for one in report.saved] == [
        (16 * 64 * 4, f"test_report.py:{first + 1} in activations: hidden = torch.tanh(x @ w)"),
        (16 * 8 * 4, f"test_report.py:{first + 2} in activations: return torch.exp(hidden @ v).sum()"),
    ]
    assert report.saved_bytes == 16 * 72 * 4
    text = str(report)
    assert "│ saved for the backward            │            │  4.5 KiB │" in text
    assert f"\nSaved for the backward: tanh, 4.0 KiB, test_report.py:{first + 1} in activations: " in text
    assert "Saved for the backward (2)" in report._repr_html_()
    with torch.no_grad():
        assert tpu_lowering.explain(activations, x, w, v).saved == ()


def test_a_compiled_function_is_explained_too() -> None:
    compiled = torch.compile(model, backend="eager")
    assert tpu_lowering.explain(compiled, X).programs_before == 3


def test_explain_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "user.py"
    path.write_text(
        "import torch\n\ndef double(x):\n    return x * 2\n\ndef example_inputs():\n    return torch.ones(3)\n"
    )
    assert main(["explain", f"{path}:double", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["programs_after"] == 1
    assert main(["explain", f"{path}:missing"]) == 1
    assert capsys.readouterr().err == (
        f"[TL106] nothing to explain: '{path}:missing'\n"
        "  why  expected FILE:FUNCTION, with example_inputs() in FILE to give FUNCTION's arguments, "
        "got no function 'missing' in user\n"
        "  fix  python -m tpu_lowering explain model.py:forward\n"
    )


def test_demo_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With one layer of the decoder; ``tests/kernels/test_demo.py`` compares all of it."""
    config = model_of_demo.config()
    config.num_hidden_layers = 1
    monkeypatch.setattr(model_of_demo, "config", lambda: config)
    assert main(["demo"]) == 0
    text = capsys.readouterr().out
    assert "equal within float32 rounding" in " ".join(text.split())
    assert "One XLA program. No allocation is left." in text


def test_dump_holds_every_stage_and_runs_on_its_own(tmp_path: pathlib.Path) -> None:
    torch.compile(model, backend="helion_tpu", options={"dump": str(tmp_path)})(X)
    (folder,) = tmp_path.iterdir()
    stages = [path.name.partition("_")[2] for path in sorted(folder.glob("*.graph"))]
    assert stages[0] == "captured.graph"
    assert stages[-1] == "lower.graph"
    assert "return_fresh_buffers.graph" in stages
    assert "return_fresh_buffers: fresh" in (folder / "actions.txt").read_text()
    program = folder / f"{folder.name}.py"
    assert forked.run(str(program), folder=tmp_path) == "['float32[16,256]']\n"


def test_generated_code_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tpu_lowering"):
        torch.compile(model, backend="helion_tpu")(X)
    (code,) = [record.getMessage() for record in caplog.records if record.name == "tpu_lowering.output_code"]
    assert '    with jax.named_scope("test_report.py:39"):\n' in code
    assert "        mul = aten.mul(arg0_1, 2, out=f32[16, 256])\n" in code
    assert "        (getitem,) = exp_into(mul, None)\n" in code
