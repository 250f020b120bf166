"""The pipeline as a value: its text, passes that are left out, what is legal after a stage, and bisecting."""

from __future__ import annotations

import dataclasses
import gc
import pathlib
from typing import Any

import pytest
import torch
from torch import fx

from tests.cases.harness import capture, compile_and_record, refusal
from tpu_lowering import __main__, compat, errors, pipeline
from tpu_lowering.ir import chips, graphs, legal
from tpu_lowering.ir.actions import Action
from tpu_lowering.observers import Observers
from tpu_lowering.options import Options
from tpu_lowering.pipeline import Pipeline
from tpu_lowering.report.bisect import bisect
from tpu_lowering.stages import Request

aten = compat.aten
X = torch.randn(4, 256)
TPU = chips.find("tpu7x")

TEXT = (
    "specialise,mask_padding,separate_signature,drop_checks,call_control_flow,inline_helion_kernels,make_draws_explicit,"
    "call_registered_kernels,watch_kernels,make_views_explicit,shard_kernels,define_allocations,simplify_views,"
    "return_fresh_buffers,drop_overwritten_values,assemble_writes,drop_dead_allocations,unflatten_kernels,lower,generate,compile"
)


def function(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x * 2, -1)[:, 1:]


def test_the_text_of_a_program_for_the_cpu() -> None:
    assert str(Pipeline.of(Options())) == TEXT


@pytest.mark.parametrize("chip", [chips.CPU, TPU], ids=lambda chip: chip.name)
@pytest.mark.parametrize("fuse", ["never", "tpu", "always"])
def test_text_parses_back(chip: chips.Chip, fuse: Any) -> None:
    made = Pipeline.of(Options(fuse=fuse), chip)
    assert Pipeline.parse(str(made)) == made
    assert Pipeline.parse(",\n ".join(pass_.name for pass_ in made.passes)) == made
    assert ("fuse_rows" in str(made)) == (fuse == "always" or (fuse == "tpu" and chip == TPU))
    assert ("choose_launches" in str(made)) == (chip == TPU)


def test_true_and_false_keep_their_meaning() -> None:
    assert Pipeline.of(Options(passes=True)).passes == pipeline.BUFFERS
    assert Pipeline.of(Options(passes=False)).passes == ()


def test_a_text_is_the_whole_list() -> None:
    record = compile_and_record(function, X, passes="merge_equal, expand_rows,merge_equal,fuse_rows")
    stages = [stage.name for stage in record.only.stages]
    assert stages[stages.index(pipeline.AS_WRITTEN) + 1 : -1] == [
        "merge_equal",
        "expand_rows",
        "merge_equal",
        "fuse_rows",
    ]
    assert "pallas" not in record.only.at("expand_rows").text
    assert "softmax_rows" in record.only.at("fuse_rows").text
    torch.testing.assert_close(record.results, function(X))


def test_names_that_are_no_passes_are_refused() -> None:
    found = refusal(function, lambda: (X,), passes="simplify_views,fuse_row")
    assert str(found) == (
        "[TL113] text that is no pipeline: 'passes'\n"
        "  why  expected some of the passes simplify_views, return_fresh_buffers, drop_overwritten_values, assemble_writes, "
        "drop_dead_allocations, unflatten_kernels, choose_launches, gather_first, sum_gathered, slice_first, "
        "convolve_channels, contract_heads, take_experts_as_stored, select_rows, repeat_elements, sum_intervals, fuse_attention, contract_batches, "
        "fuse_around_kernels, concatenate_in_product, merge_equal, expand_rows, fuse_rows, "
        "fuse_long_rows, compare_scattered, compute_once; got 'fuse_row'; did you mean 'fuse_rows'?\n"
        "  fix  python -m tpu_lowering pipeline prints the text that is the default; leave passes out of it"
    )


@pytest.mark.parametrize(
    "text",
    [TEXT.replace("drop_checks,", ""), TEXT.replace("lower,generate", "generate,lower"), f"{TEXT},simplify_views"],
    ids=["left out", "in another order", "after the end"],
)
def test_steps_always_run_in_their_order(text: str) -> None:
    with pytest.raises(errors.TpuLoweringError, match=r"\[TL113\].*\n  why  expected the steps specialise,"):
        Pipeline.parse(text)


@pytest.mark.parametrize("value", [1, None, ["simplify_views"]])
def test_values_of_other_types_are_refused(value: Any) -> None:
    found = refusal(function, lambda: (X,), passes=value)
    assert found.code == "TL102" and "True, False, or names of passes separated by commas" in found.reason


def graph_after(last: str) -> fx.Graph:
    module = capture(function, X)
    given = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    return Pipeline().up_to(last).run(Request("one", module, given, Options(), Observers([]))).module.graph


def test_what_a_step_removed_is_illegal_after_it() -> None:
    graph = graph_after("watch_kernels")
    legal.check(graph, pipeline.CALLED, "watch_kernels")
    with pytest.raises(errors.TpuLoweringError) as caught:
        legal.check(graph, pipeline.NORMAL, "a stage")
    assert str(caught.value) == (
        "[TL402] an invariant of the graph is broken: the graph after a stage\n"
        "  why  expected what is legal after a stage, got: slice_1 is a call of aten.slice.Tensor, one of the views of "
        "memory that a stage before removed\n"
        "  fix  this is a bug of tpu_lowering; please report it with the output of options={'dump': 'folder'}"
    )


def _with_a_wrong_box(graph: fx.Graph) -> None:
    (box,) = [node for node in graph.nodes if "read_box" in str(node.target)]
    box.meta["val"] = box.meta["val"].new_empty(7, 7)


def _with_a_write(graph: fx.Graph) -> None:
    (box,) = [node for node in graph.nodes if "read_box" in str(node.target)]
    with graph.inserting_after(box):
        graph.call_function(aten.add_.Tensor, (box, 1)).meta["val"] = box.meta["val"]


def _with_a_method(graph: fx.Graph) -> None:
    graph.inserting_before(graph.output_node()).__enter__()
    graph.call_method("exp", (next(iter(graph.nodes)),))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (_with_a_wrong_box, "to be torch.float32 (7, 7)"),
        (_with_a_write, "which writes to its arguments"),
        (_with_a_method, "a node of kind call_method"),
    ],
)
def test_what_is_illegal_is_named(broken: Any, said: str) -> None:
    graph = graph_after(pipeline.AS_WRITTEN)
    legal.check(graph, pipeline.NORMAL, "normalising")
    broken(graph)
    with pytest.raises(errors.TpuLoweringError) as caught:
        legal.check(graph, pipeline.NORMAL, "a stage")
    assert caught.value.code == "TL402" and said in str(caught.value)


@pytest.mark.parametrize("broken", [_with_a_wrong_box, _with_a_write, _with_a_method])
def test_what_a_later_stage_makes_illegal_is_found(broken: Any) -> None:
    graph, checked = graph_after(pipeline.AS_WRITTEN), legal.Checked()
    for stage in ("normalising", "a stage"):
        legal.check(graph, pipeline.NORMAL, stage, checked)
    broken(graph)
    with pytest.raises(errors.TpuLoweringError, match="TL402"):
        legal.check(graph, pipeline.NORMAL, "another stage", checked)


def test_what_a_step_removed_is_illegal_though_nothing_changed() -> None:
    graph, checked = graph_after("watch_kernels"), legal.Checked()
    legal.check(graph, pipeline.CALLED, "watch_kernels", checked)
    with pytest.raises(errors.TpuLoweringError, match=r"slice_1 is a call of aten\.slice\.Tensor"):
        legal.check(graph, pipeline.NORMAL, "a stage", checked)


@pytest.mark.parametrize("collects", [True, False])
def test_the_garbage_collector_is_as_it_was(collects: bool) -> None:
    given = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        graph_after("lower")
        assert gc.isenabled() is collects
        with pytest.raises(errors.TpuLoweringError):
            Pipeline((RaisingPass(),)).run(Request("one", capture(function, X), [X], Options(), Observers([])))
        assert gc.isenabled() is collects
    finally:
        (gc.enable if given else gc.disable)()


@dataclasses.dataclass(frozen=True)
class RaisingPass:
    """A pass that is interrupted."""

    name: str = "raise"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        assert not gc.isenabled()
        raise errors.refuse("TL402", "a pass", "expected nothing, got an interruption", "none")


@dataclasses.dataclass(frozen=True)
class AddsOne:
    """A wrong pass."""

    name: str = "adds_one"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        (softmax,) = [node for node in graph.nodes if graphs.is_call(node, aten._softmax.default)]
        with graph.inserting_after(softmax):
            wrong = graphs.call(graph, aten.add.Scalar, softmax, 1.0)
        softmax.replace_all_uses_with(wrong, delete_user_cb=lambda user: user is not wrong)
        return []


def test_bisecting_finds_a_wrong_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BUFFERS", (*pipeline.BUFFERS[:2], AddsOne(), *pipeline.BUFFERS[2:]))
    (found,) = bisect(function, (X,)).differences
    assert (found.stage, found.value, found.largest) == ("adds_one", 0, pytest.approx(1.0))


def test_bisecting_finds_wrong_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(program: Any, *given: Any) -> Any:
        made = generate(program, *given)
        return dataclasses.replace(made, definitions=made.definitions.replace("mul(arg0_1, 2", "mul(arg0_1, 3"))

    generate = pipeline.source.generate
    monkeypatch.setattr(pipeline.source, "generate", wrong)
    (found,) = bisect(function, (X,), options={"fuse": "never"}).differences
    assert found.stage == "compile"


def test_bisecting_a_function_without_a_fault() -> None:
    """Mutated arguments, a result that lies column by column, and gradients."""

    def model(x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        state.add_(1)
        return (function(x) * 2).t().contiguous().t()

    found = bisect(model, (X.clone().requires_grad_(), torch.zeros(3)), options={"fuse": "always"})
    assert found.differences == () and found.equals_eager is True
    programs = {program.partition("_")[0] for program, _ in found.stages}
    assert programs == {"forward", "backward"}
    assert {stage for _, stage in found.stages} >= {"fuse_rows", "merge_equal (again)", "lower", "compile"}


def test_bisecting_what_draws_says_nothing_of_eager() -> None:
    found = bisect(lambda x: x + torch.rand_like(x), (X,))
    assert found.differences == () and found.equals_eager is None


def test_the_commands(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.py"
    path.write_text(
        "import torch\ndef forward(x):\n    return torch.softmax(x, -1)\n"
        "def example_inputs():\n    return torch.randn(4, 256)\n"
    )
    assert __main__.main(["bisect", f"{path}:forward"]) == 0
    printed = capsys.readouterr().out
    assert "fuse_rows" in printed and "No stage changes a result, and the function's results are eager's." in printed
    assert __main__.main(["pipeline"]) == 0
    assert capsys.readouterr().out.startswith(TEXT)
    assert __main__.main(["bisect", f"{path}:forward", "--passes", "nonsense"]) == 1
    assert "[TL113]" in capsys.readouterr().err
