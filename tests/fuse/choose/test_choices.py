"""Which form of a region is taken, and what the compiler's word does to a whole program."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import pytest
import torch
from torch import fx

import tpu_lowering
from tests.fuse.against_eager import Seen
from tpu_lowering import aot, pipeline
from tpu_lowering.fuse.choose.choices import Candidates, Choice, Chooser, Score, best
from tpu_lowering.fuse.expand_rows import ExpandRows
from tpu_lowering.fuse.fuse_rows import FuseRows
from tpu_lowering.fuse.merge_equal import MergeEqual
from tpu_lowering.fuse.rows.tiles import BlockValue, TiledSpace, fetched_bytes, tile
from tpu_lowering.fuse.space.spaces import Space
from tpu_lowering.ir import chips
from tpu_lowering.ir.actions import Action
from tpu_lowering.runtime.aot.choosing import CompilerChooser
from tpu_lowering.runtime.cache.store import Store

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Chip:
    """1 MiB takes as long as a cycle."""

    hbm_bytes_per_second: float = float(MIB)
    cycles_per_second: float = 1.0


CHIP = Chip()


GIGAHERTZ = {"v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75, "tpu7x": 2.2}


@pytest.mark.parametrize("chip", chips.CHIPS, ids=lambda chip: chip.name)
def test_the_clock_that_turns_cycles_into_time(chip: chips.Chip) -> None:
    assert chip.cycles_per_second == pytest.approx(GIGAHERTZ[chip.name] * 1e9, rel=0.01)


def test_fewer_bytes_win_then_less_time_then_fewer_cycles() -> None:
    plain = Score(300 * MIB, 100)
    kernels = [Score(200 * MIB, 90), Score(100 * MIB, 80), Score(100 * MIB, 70), Score(error="TL601")]
    assert best(plain, kernels, CHIP) == Choice(2, "100.0 MiB against 300.0 by XLA, as the compiler says")
    assert best(Score(100 * MIB), kernels, CHIP) == Choice(
        None, "the best kernel would move 100.0 MiB against 100.0 by XLA"
    )
    assert best(plain, [Score(error="too large")], CHIP) == Choice(None, "no kernel compiles: too large")
    assert best(plain, [None], CHIP) == Choice(None, "no kernel was compiled in time")
    assert best(plain, [Score(100 * MIB, None), Score(100 * MIB, 70)], CHIP).kernel == 1
    near = [Score(100 * MIB, 150), Score(100 * MIB + 1, 99), Score(101 * MIB, 90), None]
    assert best(plain, near, CHIP).kernel == 1  # 150 s, 100 s and a little, 101 s


def test_copies_that_the_compiler_does_not_list_are_not_held_against_those_that_it_does() -> None:
    in_each_step = Score(96 * MIB, 400, operand_bytes=96 * MIB, listed=False)
    in_the_grid = Score(160 * MIB, 140, operand_bytes=96 * MIB)
    assert best(None, [in_each_step, in_the_grid], CHIP).kernel == 1
    assert best(None, [dataclasses.replace(in_each_step, listed=True), in_the_grid], CHIP).kernel == 0


def test_a_kernel_of_the_users_has_no_form_of_xlas() -> None:
    scores = [Score(100 * MIB, 200), Score(100 * MIB, 150), Score(error="TL601, expected less, got more")]
    assert best(None, scores, CHIP) == Choice(
        1, "100.0 MiB and 150 cycles against 100.0 MiB and 200 cycles as it is, as the compiler says"
    )
    assert best(None, scores[::-1], CHIP).reason.endswith("against none that compiles as it is, as the compiler says")


@dataclasses.dataclass
class Says:
    """A chooser that says one thing, and keeps what it was asked."""

    choice: Choice | None
    asked: list[Candidates] = dataclasses.field(default_factory=list)

    def choose(self, candidates: Candidates) -> Choice | None:
        self.asked.append(candidates)
        return self.choice


def graph_of(fn: object, *args: torch.Tensor) -> fx.GraphModule:
    """The graph that the last pass is given."""
    found: list[fx.GraphModule] = []

    class Keep(Seen):
        def stage(self, program: str, stage: str, module: fx.GraphModule, seconds: float) -> None:
            if stage == pipeline.BUFFERS[-1].name:
                found.append(module)

    torch.compile(fn, backend=functools.partial(tpu_lowering.backend.helion_tpu, observers=(Keep(),)))(*args)  # type: ignore[call-overload]
    return found[-1]


def fuse(chooser: Says, *args: torch.Tensor) -> list[Action]:
    module = graph_of(lambda x: torch.softmax(x, -1), *args)
    return fuse_rows(chooser, module)


def fuse_rows(chooser: Chooser, module: fx.GraphModule) -> list[Action]:
    passes = (MergeEqual(), ExpandRows(), MergeEqual(), FuseRows(chooser))
    return [action for pass_ in passes for action in pass_(module.graph)]


def test_a_chooser_is_asked_about_several_blocks() -> None:
    chooser = Says(Choice(1, "because"))
    (action,) = fuse(chooser, torch.randn(8192, 512))
    (asked,) = chooser.asked
    assert len(asked.kernels) >= 2
    assert len({kernel.text for kernel in asked.kernels}) == len(asked.kernels)
    assert "pallas_call" not in asked.plain[1].text
    assert (action.kind, action.reason) == ("fused", "5 operations are the kernel softmax_rows: because")


def test_a_region_that_a_chooser_leaves_to_xla() -> None:
    (action,) = fuse(Says(Choice(None, "the best kernel would move more")), torch.randn(64, 512))
    assert (action.kind, action.code) == ("unfused", "TL608")
    assert action.reason == "the best kernel would move more"


def test_what_the_compiler_said_is_kept(tmp_path: pathlib.Path) -> None:
    """A second process does not compile; one that may not compile, and knows nothing, leaves the default."""
    module = graph_of(lambda x: torch.softmax(x, -1), torch.randn(512, 1024))
    asker = Says(None)
    fuse_rows(asker, module)
    (candidates,) = asker.asked
    target = chips.find("v5e")
    assert CompilerChooser(target, Store(tmp_path), compiles=False).choose(candidates) is None
    first = CompilerChooser(target, Store(tmp_path), compiles=True)
    choice = first.choose(candidates)
    assert choice is not None
    assert first.spent > 0
    again = CompilerChooser(target, Store(tmp_path), compiles=False)
    assert again.choose(candidates) == choice


def test_a_mask_for_all_heads_is_fetched_once_for_them() -> None:
    """The grid runs over the heads last, so that the mask's block stays where it is."""
    space, _ = Space.of((4, 16, 1024, 1024))
    batch, heads, queries, keys = space.order()
    scores, mask = BlockValue(frozenset(space.sizes), 2), BlockValue(frozenset({batch, queries, keys}), 2)
    tiling = tile(TiledSpace(space.sizes, frozenset({keys}), [scores, mask, scores], 3, 48 * MIB))
    assert tiling is not None
    order, steps = [dim for dim, _ in tiling.grid], dict(tiling.grid)
    assert order[-1] == heads or heads not in order
    assert fetched_bytes(mask, order, dict(tiling.blocks), steps) == 4 * 1024 * 1024 * 2


def test_a_program_is_compiled_without_generated_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what is returned if kernels make nothing cheaper."""
    softmax, x = functools.partial(torch.softmax, dim=-1), torch.empty(8192, 1024)
    program = tpu_lowering.aot_compile(softmax, (x,), target="tpu7x")
    assert (len(program.vmem_bytes), program.hbm_bytes) == (1, 2 * x.nbytes)
    assert program.fusion.startswith("64.0 MiB with softmax_rows, ")
    monkeypatch.setattr(tpu_lowering.TpuProgram, "hbm_bytes", 64 * MIB)
    program = tpu_lowering.aot_compile(softmax, (x,), target="tpu7x")
    said = "64.0 MiB with softmax_rows, 64.0 MiB without; the form without is taken"
    assert (len(program.vmem_bytes), program.fusion) == (0, said)


def test_a_kernel_that_the_compiler_refuses_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = aot.compile_captured

    def refusing(captured: aot.Captured, *args: object) -> tpu_lowering.TpuProgram:
        if any(kernel.generated for kernel in captured.source.kernels.values()):
            raise tpu_lowering.errors.refuse("TL601", "softmax_rows", "expected less, got more", "use less")
        return compiled(captured, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(aot, "compile_captured", refusing)
    program = tpu_lowering.aot_compile(lambda x: torch.softmax(x, -1), (torch.empty(512, 256),), target="v5e")
    assert program.fusion == "without softmax_rows: TL601, expected less, got more"
    assert not program.vmem_bytes


def test_explain_says_what_became_a_kernel() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, -1)

    report = tpu_lowering.explain(fn, torch.randn(8192, 1024), target="tpu7x")
    (region,) = report.fused
    assert region.reason == "5 operations are the kernel softmax_rows: 64.0 MiB where XLA moves about 128.0"
    assert report.unfused == ()
    assert report.chip is not None
    assert report.chip.fusion.startswith("64.0 MiB with softmax_rows, ")
    assert "Became kernels" in str(report)
    assert "Generated kernels: 64.0 MiB with softmax_rows" in " ".join(str(report).split())
