"""The graph before and after each pass, as text, on graphs captured from small functions.

Every golden is executed: the graph before and after the pass gives the same values. To accept new text,
run with ``EXPECTTEST_ACCEPT=1``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import expecttest
import torch

from tests.cases.case_kernels import (
    accumulate,
    add_into,
    exp_and_neg_into,
    exp_first_half,
    exp_into,
    helion_exp_into,
    helion_gate_flat_into,
)
from tests.cases.harness import capture, normalised
from tpu_lowering.ir import interpreter
from tpu_lowering.ir.printer import print_graph
from tpu_lowering.passes.assemble_writes import AssembleWrites
from tpu_lowering.passes.base import Pass
from tpu_lowering.passes.drop_dead_allocations import DropDeadAllocations
from tpu_lowering.passes.drop_overwritten_values import DropOverwrittenValues
from tpu_lowering.passes.return_fresh_buffers import ReturnFreshBuffers
from tpu_lowering.passes.simplify_views import SimplifyViews
from tpu_lowering.passes.unflatten_kernels import UnflattenKernels


def before_and_after(
    pass_: Pass, function: Callable[..., Any], *shapes: tuple[int, ...], first: tuple[Pass, ...] = ()
) -> str:
    """The graph of a function before and after a pass, and the pass's actions.

    Args:
        pass_: the pass.
        function: what is captured.
        shapes: of its arguments.
        first: passes that run before.
    """
    module = normalised(capture(function, *(torch.ones(shape) for shape in shapes)))
    for earlier in first:
        earlier(module.graph)
    sample = interpreter.random_arguments(module.graph, seed=1)
    before, values = print_graph(module.graph), interpreter.interpret(module, sample)
    actions = [
        f"{act.kind} {act.node}: {f'[{act.code}] ' if act.code else ''}{act.reason}" for act in pass_(module.graph)
    ]
    assert interpreter.differing(values, interpreter.interpret(module, sample)) is None
    return "\n".join([before, "", f"{pass_.name}:", *actions, "", print_graph(module.graph)])


def exp_of(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    exp_into(x, out)
    return out


def helion_exp_of(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    helion_exp_into(x, out)
    return out


def exp_and_sum(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(x)
    exp_into(x, out)
    total = torch.empty_like(x)
    accumulate(x, total)
    return out, total[:0]


def over_fills(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    whole, half, summed = torch.zeros_like(x), torch.ones_like(x), torch.full_like(x, 2.0)
    exp_into(x, whole)
    exp_first_half(x, half)
    accumulate(x, summed)
    return whole, half, summed


def over_flat_views(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out, other = torch.empty_like(x), torch.empty(128)
    helion_gate_flat_into(x.view(-1), y.view(-1), out.view(-1))
    helion_gate_flat_into(x.view(-1), out.view(-1), other)
    return out, other


def over_an_input(x: torch.Tensor, out: torch.Tensor) -> None:
    exp_into(x, out)


def halves(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    out = torch.empty(16, 4)
    exp_into(x, out[:8])
    add_into(x, y, out[8:])
    return out


def three_quarters(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(16, 4)
    exp_into(x, out[:8])
    exp_into(x[:4], out[8:12])
    return out


def keys_and_values(x: torch.Tensor) -> torch.Tensor:
    kv = torch.empty(2, 8, 4)
    exp_and_neg_into(x, kv[0], kv[1])
    return kv


def through_a_transpose(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(4, 8).t()
    exp_into(x.t().contiguous().t(), out)
    return out.t().clone().t()


class Goldens(expecttest.TestCase):
    def test_return_fresh_buffers(self) -> None:
        self.assertExpectedInline(
            before_and_after(ReturnFreshBuffers(), exp_of, (8, 4)),
            """\
%arg0_1: f32[8, 4] = input
%empty_like: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, %empty_like)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
return (%getitem)

return_fresh_buffers:
fresh empty_like: cases::exp_into only writes 'out': every block is visited and stored whole

%arg0_1: f32[8, 4] = input
%empty_like: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
return (%getitem)""",
        )

    def test_return_fresh_buffers_of_a_helion_kernel(self) -> None:
        self.assertExpectedInline(
            before_and_after(ReturnFreshBuffers(), helion_exp_of, (8, 4)),
            """\
%arg0_1: f32[8, 4] = input
%empty_like: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%clone_default: f32[8, 4] = aten.clone.default(%empty_like)
%kernel_call: (f32[8, 4]) = kernel helion_exp_into(%arg0_1, %clone_default)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
return (%getitem)

return_fresh_buffers:
fresh clone_default: helion_exp_into only writes 'out': every block is visited and stored whole

%arg0_1: f32[8, 4] = input
%empty_like: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%clone_default: f32[8, 4] = aten.clone.default(%empty_like)
%kernel_call: (f32[8, 4]) = kernel helion_exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
return (%getitem)""",
        )

    def test_return_fresh_buffers_that_are_read(self) -> None:
        self.assertExpectedInline(
            before_and_after(ReturnFreshBuffers(), exp_and_sum, (8, 4)),
            """\
%arg0_1: f32[8, 4] = input
%empty_like: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, %empty_like)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%empty_like_1: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%kernel_call_1: (f32[8, 4]) = kernel cases::accumulate(%arg0_1, %empty_like_1)
%getitem_4: f32[8, 4] = getitem(%kernel_call_1, 0)
%read_box: f32[0, 4] = read_box(%getitem_4, box('0:0, 0:4'))
return (%getitem, %read_box)

return_fresh_buffers:
fresh empty_like: cases::exp_into only writes 'out': every block is visited and stored whole
fresh empty_like_1: [TL504] cases::accumulate may load 'out' before storing it: the body loads it before it has stored every element

%arg0_1: f32[8, 4] = input
%empty_like: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%empty_like_1: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%kernel_call_1: (f32[8, 4]) = kernel cases::accumulate(%arg0_1, fresh)
%getitem_4: f32[8, 4] = getitem(%kernel_call_1, 0)
%read_box: f32[0, 4] = read_box(%getitem_4, box('0:0, 0:4'))
return (%getitem, %read_box)""",
        )

    def test_return_fresh_buffers_for_slices(self) -> None:
        first = (SimplifyViews(),)
        self.assertExpectedInline(
            before_and_after(ReturnFreshBuffers(), halves, (8, 4), (8, 4), first=first),
            """\
%arg0_1: f32[8, 4] = input
%arg1_1: f32[8, 4] = input
%empty: f32[16, 4] = aten.empty.memory_format([16, 4], device=cpu, pin_memory=False)
%read_box: f32[8, 4] = read_box(%empty, box('0:8, 0:4'))
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, %read_box)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%write_box: f32[16, 4] = write_box(%empty, %getitem, box('0:8, 0:4'))
%read_box_2: f32[8, 4] = read_box(%empty, box('8:16, 0:4'))
%kernel_call_1: (f32[8, 4]) = kernel cases::add_into(%arg0_1, %arg1_1, %read_box_2)
%getitem_4: f32[8, 4] = getitem(%kernel_call_1, 0)
%write_box_1: f32[16, 4] = write_box(%write_box, %getitem_4, box('8:16, 0:4'))
return (%write_box_1)

return_fresh_buffers:
fresh read_box: cases::exp_into only writes 'out': every block is visited and stored whole
fresh read_box_2: cases::add_into only writes 'out': every block is visited and stored whole

%arg0_1: f32[8, 4] = input
%arg1_1: f32[8, 4] = input
%empty: f32[16, 4] = aten.empty.memory_format([16, 4], device=cpu, pin_memory=False)
%read_box: f32[8, 4] = read_box(%empty, box('0:8, 0:4'))
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%write_box: f32[16, 4] = write_box(%empty, %getitem, box('0:8, 0:4'))
%read_box_2: f32[8, 4] = read_box(%empty, box('8:16, 0:4'))
%kernel_call_1: (f32[8, 4]) = kernel cases::add_into(%arg0_1, %arg1_1, fresh)
%getitem_4: f32[8, 4] = getitem(%kernel_call_1, 0)
%write_box_1: f32[16, 4] = write_box(%write_box, %getitem_4, box('8:16, 0:4'))
return (%write_box_1)""",
        )

    def test_drop_overwritten_values(self) -> None:
        self.assertExpectedInline(
            before_and_after(DropOverwrittenValues(), over_fills, (8, 4)),
            """\
%arg0_1: f32[8, 4] = input
%full_default: f32[8, 4] = aten.full.default([8, 4], 0, dtype=float32, device=cpu)
%full_default_1: f32[8, 4] = aten.full.default([8, 4], 1, dtype=float32, device=cpu)
%full_default_2: f32[8, 4] = aten.full.default([8, 4], 2.0, dtype=float32, device=cpu)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, %full_default)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%kernel_call_1: (f32[8, 4]) = kernel cases::exp_first_half(%arg0_1, %full_default_1)
%getitem_6: f32[8, 4] = getitem(%kernel_call_1, 0)
%kernel_call_2: (f32[8, 4]) = kernel cases::accumulate(%arg0_1, %full_default_2)
%getitem_7: f32[8, 4] = getitem(%kernel_call_2, 0)
return (%getitem, %getitem_6, %getitem_7)

drop_overwritten_values:
fresh full_default: cases::exp_into overwrites all of it: every block is visited and stored whole
kept full_default_1: [TL505] cases::exp_first_half: the grid (1,) does not visit all blocks (2, 1)
kept full_default_2: [TL501] cases::accumulate: the body loads it before it has stored every element

%arg0_1: f32[8, 4] = input
%full_default: f32[8, 4] = aten.full.default([8, 4], 0, dtype=float32, device=cpu)
%full_default_1: f32[8, 4] = aten.full.default([8, 4], 1, dtype=float32, device=cpu)
%full_default_2: f32[8, 4] = aten.full.default([8, 4], 2.0, dtype=float32, device=cpu)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%kernel_call_1: (f32[8, 4]) = kernel cases::exp_first_half(%arg0_1, %full_default_1)
%getitem_6: f32[8, 4] = getitem(%kernel_call_1, 0)
%kernel_call_2: (f32[8, 4]) = kernel cases::accumulate(%arg0_1, %full_default_2)
%getitem_7: f32[8, 4] = getitem(%kernel_call_2, 0)
return (%getitem, %getitem_6, %getitem_7)""",
        )

    def test_drop_overwritten_values_of_an_input(self) -> None:
        self.assertExpectedInline(
            before_and_after(DropOverwrittenValues(), over_an_input, (8, 4), (8, 4)),
            """\
%arg0_1: f32[8, 4] = input
%arg1_1: f32[8, 4] = input
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, %arg1_1)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
return (%getitem)

drop_overwritten_values:
fresh arg1_1: cases::exp_into overwrites all of it: every block is visited and stored whole

%arg0_1: f32[8, 4] = input
%arg1_1: f32[8, 4] = input
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
return (%getitem)""",
        )

    def test_assemble_writes(self) -> None:
        first = (SimplifyViews(), ReturnFreshBuffers())
        self.assertExpectedInline(
            before_and_after(AssembleWrites(), halves, (8, 4), (8, 4), first=first),
            """\
%arg0_1: f32[8, 4] = input
%arg1_1: f32[8, 4] = input
%empty: f32[16, 4] = aten.empty.memory_format([16, 4], device=cpu, pin_memory=False)
%read_box: f32[8, 4] = read_box(%empty, box('0:8, 0:4'))
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%write_box: f32[16, 4] = write_box(%empty, %getitem, box('0:8, 0:4'))
%read_box_2: f32[8, 4] = read_box(%empty, box('8:16, 0:4'))
%kernel_call_1: (f32[8, 4]) = kernel cases::add_into(%arg0_1, %arg1_1, fresh)
%getitem_4: f32[8, 4] = getitem(%kernel_call_1, 0)
%write_box_1: f32[16, 4] = write_box(%write_box, %getitem_4, box('8:16, 0:4'))
return (%write_box_1)

assemble_writes:
moved write_box_1: 2 pieces fill it along dimension 0

%arg0_1: f32[8, 4] = input
%arg1_1: f32[8, 4] = input
%empty: f32[16, 4] = aten.empty.memory_format([16, 4], device=cpu, pin_memory=False)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%kernel_call_1: (f32[8, 4]) = kernel cases::add_into(%arg0_1, %arg1_1, fresh)
%getitem_4: f32[8, 4] = getitem(%kernel_call_1, 0)
%cat_default: f32[16, 4] = aten.cat.default([%getitem, %getitem_4], 0)
return (%cat_default)""",
        )

    def test_assemble_writes_of_one_call(self) -> None:
        first = (SimplifyViews(), ReturnFreshBuffers())
        self.assertExpectedInline(
            before_and_after(AssembleWrites(), keys_and_values, (8, 4), first=first),
            """\
%arg0_1: f32[8, 4] = input
%empty: f32[2, 8, 4] = aten.empty.memory_format([2, 8, 4], device=cpu, pin_memory=False)
%read_box: f32[1, 8, 4] = read_box(%empty, box('0:1, 0:8, 0:4'))
%reshape_default: f32[8, 4] = aten.reshape.default(%read_box, [8, 4])
%read_box_1: f32[1, 8, 4] = read_box(%empty, box('1:2, 0:8, 0:4'))
%reshape_default_1: f32[8, 4] = aten.reshape.default(%read_box_1, [8, 4])
%kernel_call: (f32[8, 4], f32[8, 4]) = kernel cases::exp_and_neg_into(%arg0_1, fresh, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%getitem_2: f32[8, 4] = getitem(%kernel_call, 1)
%reshape_default_2: f32[1, 8, 4] = aten.reshape.default(%getitem, [1, 8, 4])
%write_box: f32[2, 8, 4] = write_box(%empty, %reshape_default_2, box('0:1, 0:8, 0:4'))
%reshape_default_3: f32[1, 8, 4] = aten.reshape.default(%getitem_2, [1, 8, 4])
%write_box_1: f32[2, 8, 4] = write_box(%write_box, %reshape_default_3, box('1:2, 0:8, 0:4'))
return (%write_box_1)

assemble_writes:
moved write_box_1: 2 pieces fill it along dimension 0

%arg0_1: f32[8, 4] = input
%empty: f32[2, 8, 4] = aten.empty.memory_format([2, 8, 4], device=cpu, pin_memory=False)
%kernel_call: (f32[8, 4], f32[8, 4]) = kernel cases::exp_and_neg_into(%arg0_1, fresh, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%getitem_2: f32[8, 4] = getitem(%kernel_call, 1)
%reshape_default_2: f32[1, 8, 4] = aten.reshape.default(%getitem, [1, 8, 4])
%reshape_default_3: f32[1, 8, 4] = aten.reshape.default(%getitem_2, [1, 8, 4])
%cat_default: f32[2, 8, 4] = aten.cat.default([%reshape_default_2, %reshape_default_3], 0)
return (%cat_default)""",
        )

    def test_assemble_writes_leaves_a_fill(self) -> None:
        first = (SimplifyViews(), DropOverwrittenValues())
        self.assertExpectedInline(
            before_and_after(AssembleWrites(), three_quarters, (8, 4), first=first),
            """\
%arg0_1: f32[8, 4] = input
%zeros: f32[16, 4] = aten.zeros.default([16, 4], device=cpu, pin_memory=False)
%read_box: f32[8, 4] = read_box(%zeros, box('0:8, 0:4'))
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%write_box: f32[16, 4] = write_box(%zeros, %getitem, box('0:8, 0:4'))
%read_box_1: f32[4, 4] = read_box(%arg0_1, box('0:4, 0:4'))
%read_box_3: f32[4, 4] = read_box(%zeros, box('8:12, 0:4'))
%kernel_call_1: (f32[4, 4]) = kernel cases::exp_into(%read_box_1, fresh)
%getitem_4: f32[4, 4] = getitem(%kernel_call_1, 0)
%write_box_1: f32[16, 4] = write_box(%write_box, %getitem_4, box('8:12, 0:4'))
return (%write_box_1)

assemble_writes:

%arg0_1: f32[8, 4] = input
%zeros: f32[16, 4] = aten.zeros.default([16, 4], device=cpu, pin_memory=False)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%write_box: f32[16, 4] = write_box(%zeros, %getitem, box('0:8, 0:4'))
%read_box_1: f32[4, 4] = read_box(%arg0_1, box('0:4, 0:4'))
%kernel_call_1: (f32[4, 4]) = kernel cases::exp_into(%read_box_1, fresh)
%getitem_4: f32[4, 4] = getitem(%kernel_call_1, 0)
%write_box_1: f32[16, 4] = write_box(%write_box, %getitem_4, box('8:12, 0:4'))
return (%write_box_1)""",
        )

    def test_simplify_views(self) -> None:
        self.assertExpectedInline(
            before_and_after(SimplifyViews(), halves, (8, 4), (8, 4)),
            """\
%arg0_1: f32[8, 4] = input
%arg1_1: f32[8, 4] = input
%empty: f32[16, 4] = aten.empty.memory_format([16, 4], device=cpu, pin_memory=False)
%read_box: f32[8, 4] = read_box(%empty, box('0:8, 0:4'))
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, %read_box)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%write_box: f32[16, 4] = write_box(%empty, %getitem, box('0:8, 0:4'))
%read_box_1: f32[8, 4] = read_box(%write_box, box('8:16, 0:4'))
%kernel_call_1: (f32[8, 4]) = kernel cases::add_into(%arg0_1, %arg1_1, %read_box_1)
%getitem_4: f32[8, 4] = getitem(%kernel_call_1, 0)
%write_box_1: f32[16, 4] = write_box(%write_box, %getitem_4, box('8:16, 0:4'))
return (%write_box_1)

simplify_views:

%arg0_1: f32[8, 4] = input
%arg1_1: f32[8, 4] = input
%empty: f32[16, 4] = aten.empty.memory_format([16, 4], device=cpu, pin_memory=False)
%read_box: f32[8, 4] = read_box(%empty, box('0:8, 0:4'))
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, %read_box)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%write_box: f32[16, 4] = write_box(%empty, %getitem, box('0:8, 0:4'))
%read_box_2: f32[8, 4] = read_box(%empty, box('8:16, 0:4'))
%kernel_call_1: (f32[8, 4]) = kernel cases::add_into(%arg0_1, %arg1_1, %read_box_2)
%getitem_4: f32[8, 4] = getitem(%kernel_call_1, 0)
%write_box_1: f32[16, 4] = write_box(%write_box, %getitem_4, box('8:16, 0:4'))
return (%write_box_1)""",
        )

    def test_simplify_views_of_transposes(self) -> None:
        self.assertExpectedInline(
            before_and_after(SimplifyViews(), through_a_transpose, (8, 4)),
            """\
%arg0_1: f32[8, 4] = input
%empty: f32[4, 8] = aten.empty.memory_format([4, 8], device=cpu, pin_memory=False)
%permute_default: f32[4, 8] = aten.permute.default(%arg0_1, [1, 0])
%clone: f32[4, 8] = aten.clone.default(%permute_default, memory_format=contiguous_format)
%permute_default_1: f32[8, 4] = aten.permute.default(%clone, [1, 0])
%read_box: f32[4, 8] = read_box(%empty, box('0:4, 0:8'))
%reshape_default: f32[4, 8] = aten.reshape.default(%read_box, [4, 8])
%permute_default_2: f32[8, 4] = aten.permute.default(%reshape_default, [1, 0])
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%permute_default_1, %permute_default_2)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%permute_default_3: f32[4, 8] = aten.permute.default(%getitem, [1, 0])
%reshape_default_1: f32[4, 8] = aten.reshape.default(%permute_default_3, [4, 8])
%write_box: f32[4, 8] = write_box(%empty, %reshape_default_1, box('0:4, 0:8'))
%permute_default_4: f32[8, 4] = aten.permute.default(%write_box, [1, 0])
%permute_default_5: f32[4, 8] = aten.permute.default(%permute_default_4, [1, 0])
%clone_1: f32[4, 8] = aten.clone.default(%permute_default_5)
%permute_default_6: f32[8, 4] = aten.permute.default(%clone_1, [1, 0])
return (%permute_default_6)

simplify_views:

%arg0_1: f32[8, 4] = input
%empty: f32[4, 8] = aten.empty.memory_format([4, 8], device=cpu, pin_memory=False)
%permute_default_2: f32[8, 4] = aten.permute.default(%empty, [1, 0])
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, %permute_default_2)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
return (%getitem)""",
        )

    def test_drop_dead_allocations(self) -> None:
        first = (ReturnFreshBuffers(), DropOverwrittenValues())
        self.assertExpectedInline(
            before_and_after(DropDeadAllocations(), over_fills, (8, 4), first=first),
            """\
%arg0_1: f32[8, 4] = input
%full_default: f32[8, 4] = aten.full.default([8, 4], 0, dtype=float32, device=cpu)
%full_default_1: f32[8, 4] = aten.full.default([8, 4], 1, dtype=float32, device=cpu)
%full_default_2: f32[8, 4] = aten.full.default([8, 4], 2.0, dtype=float32, device=cpu)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%kernel_call_1: (f32[8, 4]) = kernel cases::exp_first_half(%arg0_1, %full_default_1)
%getitem_6: f32[8, 4] = getitem(%kernel_call_1, 0)
%kernel_call_2: (f32[8, 4]) = kernel cases::accumulate(%arg0_1, %full_default_2)
%getitem_7: f32[8, 4] = getitem(%kernel_call_2, 0)
return (%getitem, %getitem_6, %getitem_7)

drop_dead_allocations:
removed full_default: nothing reads it

%arg0_1: f32[8, 4] = input
%full_default_1: f32[8, 4] = aten.full.default([8, 4], 1, dtype=float32, device=cpu)
%full_default_2: f32[8, 4] = aten.full.default([8, 4], 2.0, dtype=float32, device=cpu)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, fresh)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%kernel_call_1: (f32[8, 4]) = kernel cases::exp_first_half(%arg0_1, %full_default_1)
%getitem_6: f32[8, 4] = getitem(%kernel_call_1, 0)
%kernel_call_2: (f32[8, 4]) = kernel cases::accumulate(%arg0_1, %full_default_2)
%getitem_7: f32[8, 4] = getitem(%kernel_call_2, 0)
return (%getitem, %getitem_6, %getitem_7)""",
        )

    def test_drop_dead_allocations_keeps_what_is_used(self) -> None:
        self.assertExpectedInline(
            before_and_after(DropDeadAllocations(), exp_and_sum, (8, 4)),
            """\
%arg0_1: f32[8, 4] = input
%empty_like: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, %empty_like)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%empty_like_1: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%kernel_call_1: (f32[8, 4]) = kernel cases::accumulate(%arg0_1, %empty_like_1)
%getitem_4: f32[8, 4] = getitem(%kernel_call_1, 0)
%read_box: f32[0, 4] = read_box(%getitem_4, box('0:0, 0:4'))
return (%getitem, %read_box)

drop_dead_allocations:
kept empty_like: [TL503] its undefined contents are used by kernel_call
kept empty_like_1: [TL503] its undefined contents are used by kernel_call_1

%arg0_1: f32[8, 4] = input
%empty_like: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%kernel_call: (f32[8, 4]) = kernel cases::exp_into(%arg0_1, %empty_like)
%getitem: f32[8, 4] = getitem(%kernel_call, 0)
%empty_like_1: f32[8, 4] = aten.empty_like.default(%arg0_1, pin_memory=False)
%kernel_call_1: (f32[8, 4]) = kernel cases::accumulate(%arg0_1, %empty_like_1)
%getitem_4: f32[8, 4] = getitem(%kernel_call_1, 0)
%read_box: f32[0, 4] = read_box(%getitem_4, box('0:0, 0:4'))
return (%getitem, %read_box)""",
        )

    def test_unflatten_kernels(self) -> None:
        first = (SimplifyViews(), ReturnFreshBuffers(), DropOverwrittenValues(), DropDeadAllocations())
        self.assertExpectedInline(
            before_and_after(UnflattenKernels(), over_flat_views, (4, 32), (4, 32), first=first),
            """\
%arg0_1: f32[4, 32] = input
%arg1_1: f32[4, 32] = input
%reshape_default: f32[128] = aten.reshape.default(%arg0_1, [128])
%reshape_default_1: f32[128] = aten.reshape.default(%arg1_1, [128])
%kernel_call: (f32[128]) = kernel helion_gate_flat_into(%reshape_default, %reshape_default_1, fresh)
%getitem: f32[128] = getitem(%kernel_call, 0)
%reshape_default_3: f32[4, 32] = aten.reshape.default(%getitem, [4, 32])
%reshape_default_4: f32[128] = aten.reshape.default(%arg0_1, [128])
%kernel_call_1: (f32[128]) = kernel helion_gate_flat_into(%reshape_default_4, %getitem, fresh)
%getitem_6: f32[128] = getitem(%kernel_call_1, 0)
return (%reshape_default_3, %getitem_6)

unflatten_kernels:
moved getitem: helion_gate_flat_into is pointwise: its operands keep the shape that they had before they were flattened
moved getitem_6: helion_gate_flat_into is pointwise: its operands keep the shape that they had before they were flattened

%arg0_1: f32[4, 32] = input
%arg1_1: f32[4, 32] = input
%kernel_call_2: (f32[4, 32]) = kernel helion_gate_flat_into(%arg0_1, %arg1_1, fresh)
%getitem_7: f32[4, 32] = getitem(%kernel_call_2, 0)
%kernel_call_3: (f32[4, 32]) = kernel helion_gate_flat_into(%arg0_1, %getitem_7, fresh)
%getitem_8: f32[4, 32] = getitem(%kernel_call_3, 0)
%reshape_default_8: f32[128] = aten.reshape.default(%getitem_8, [128])
return (%getitem_7, %reshape_default_8)""",
        )
