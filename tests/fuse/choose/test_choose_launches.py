"""Which form of a Helion launch is taken: by default, by what the compiler says, and by what it said earlier."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import helion
import helion.language as hl
import pytest
import torch

from bench.kernels import KERNELS
from tpu_lowering import aot
from tpu_lowering.fuse.choose.choices import Form, Score
from tpu_lowering.ir import chips
from tpu_lowering.kernels import configs
from tpu_lowering.kernels.launch import Launch
from tpu_lowering.report.explain import Collector
from tpu_lowering.runtime.aot.choosing import CompilerChooser, Scores

(BMM,) = (case for case in KERNELS if case.name == "bmm")
(ATTENTION,) = (case for case in KERNELS if case.name == "attention")


@helion.kernel(static_shapes=True, backend="pallas", autotune_effort="none")
def double_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size()):
        out[tile] = x[tile] * 2


def double(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    double_into(x, out)
    return out


@dataclasses.dataclass
class Compiler:
    """Stands for libtpu's compiler: says which form is the fastest, and keeps what it was asked."""

    fastest: str
    asked: list[tuple[str, ...]] = dataclasses.field(default_factory=list)

    def score(self, chooser: CompilerChooser, name: str, forms: Sequence[Form], scores: Scores) -> None:
        self.asked.append(tuple(form.label for form in forms))
        scores[:] = [Score(1 << 20, 100 if form.label == self.fastest else 200) for form in forms]


def compiler(monkeypatch: pytest.MonkeyPatch, fastest: str) -> Compiler:
    made = Compiler(fastest)
    monkeypatch.setattr(CompilerChooser, "_score", lambda *given: made.score(*given))
    return made


def launch(model: object, inputs: Sequence[torch.Tensor], **options: object) -> Launch:
    captured = aot.capture(model, tuple(inputs), {}, chips.find("tpu7x"), options, ())  # type: ignore[arg-type]
    (kernel,) = captured.source.kernels.values()
    assert isinstance(kernel, Launch)
    return kernel


def test_a_loop_is_in_the_grid_unless_the_compiler_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = BMM.example(True)
    assert launch(BMM.model, inputs).flat
    said = compiler(monkeypatch, "loop in each step")
    assert not launch(BMM.model, inputs, tune=True).flat
    assert said.asked == [("loop in the grid", "loop in each step")]


def test_a_loop_that_carries_several_values_stays_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = ATTENTION.example(True)
    assert not launch(ATTENTION.model, inputs).flat
    said = compiler(monkeypatch, "loop in the grid")
    assert launch(ATTENTION.model, inputs, tune=True).flat
    assert said.asked == [("loop in each step", "loop in the grid")]


def test_the_report_says_how_a_kernel_is_launched() -> None:
    collector = Collector()
    aot.capture(BMM.model, BMM.example(True), {}, chips.find("tpu7x"), {}, (collector,))
    (found,) = collector.report().launched
    assert found.reason == "bmm_into, loop in the grid: the default"
    assert found.where.endswith("in model: bmm_into(a, b, out)")


def test_a_config_is_replaced_with_leave_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """The first of the other configs is the best; a later process that may not compile takes it."""
    x = torch.empty(1024, 2048)
    default = launch(double, (x,))
    said = compiler(monkeypatch, "block_sizes=[256, 1024]")
    assert launch(double, (x,), tune=True, cache=str(tmp_path)).grid == default.grid
    assert said.asked == []
    assert launch(double, (x,), tune="configs", cache=str(tmp_path)).grid == (4, 2)
    (asked,) = said.asked
    assert asked[0] == "as it is"
    assert len(asked) <= 1 + configs.MOST
    assert launch(double, (x,), cache=str(tmp_path)).grid == (4, 2)
    assert len(said.asked) == 1


def test_a_config_of_the_kernels_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    said = compiler(monkeypatch, "loop in the grid")
    assert launch(BMM.model, BMM.example(True), tune="configs").variants == ()
    assert said.asked == [("loop in the grid", "loop in each step")]


def test_launches_that_differ_in_where_blocks_are_have_different_texts() -> None:
    """JAX's text of a call does not say where its blocks are."""
    x = torch.empty(512, 512)

    def halves_swapped_into(x: torch.Tensor, out: torch.Tensor) -> None:
        for rows, columns in hl.tile(x.size()):
            out[columns, rows] = x[rows, columns]

    def same_into(x: torch.Tensor, out: torch.Tensor) -> None:
        for rows, columns in hl.tile(x.size()):
            out[rows, columns] = x[rows, columns]

    config = helion.Config(block_sizes=[256, 256])
    texts: set[str] = set()
    for fn in (halves_swapped_into, same_into):
        kernel = helion.kernel(fn, config=config, static_shapes=True, backend="pallas")

        def model(x: torch.Tensor, kernel: helion.Kernel = kernel) -> torch.Tensor:
            out = torch.empty_like(x)
            kernel(x, out)
            return out

        texts.add(re.sub(fn.__name__, "fn", launch(model, (x,)).text))
    assert len(texts) == 2


@pytest.mark.parametrize("limits", [[(1, 4096)], [(8, 1024), (128, 4096)], [(1, 16), (8, 512), (1, 64)]], ids=str)
def test_blocks_are_within_their_limits_and_different(limits: list[tuple[int, int]]) -> None:
    found = configs.block_sizes(limits)
    assert len(found) > 4
    assert len({tuple(sizes) for sizes in found}) == len(found)
    for sizes in found:
        assert all(low <= size <= high for size, (low, high) in zip(sizes, limits, strict=True))


def test_forms_stay_unknown_when_time_is_up(tmp_path: pathlib.Path) -> None:
    assert launch(BMM.model, BMM.example(True), tune=True, tune_seconds=0, cache=str(tmp_path)).flat
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
