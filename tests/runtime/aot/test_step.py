"""A forward and its backward, compiled for a TPU: what is saved between them, figures of both, files, refusals."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax.export
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tpu_lowering
from tpu_lowering import aot
from tpu_lowering.ir import chips
from tpu_lowering.runtime.aot import hlo

pytest.importorskip("libtpu")

ROWS, WIDTH, HIDDEN = 128, 256, 512
KIB = 1024


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, WIDTH))


def compiled(fn: Any, *args: Any, **given: Any) -> tpu_lowering.TpuStep:
    return tpu_lowering.aot_compile(fn, args, backward=True, **{"target": "v5e", **given})


def results(program: tpu_lowering.TpuProgram) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes, as the artifact has them."""
    exported = jax.export.deserialize(bytearray(program.artifact))
    return [(aval.shape, str(aval.dtype)) for aval in exported.out_avals]


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    return net()


@pytest.fixture(scope="module")
def step(model: nn.Sequential) -> tpu_lowering.TpuStep:
    """Of a closure over a module, with a scalar loss."""

    def loss(x: torch.Tensor) -> torch.Tensor:
        return model(x).pow(2).mean()

    def asked(gradient: torch.Tensor) -> None:
        raise AssertionError("nobody asked for a gradient")

    handles = [parameter.register_hook(asked) for parameter in model.parameters()]
    made = compiled(loss, torch.empty(ROWS, WIDTH))
    for handle in handles:
        handle.remove()
    return made


def test_gradients_of_a_closures_parameters_are_the_backwards_results(
    step: tpu_lowering.TpuStep, model: nn.Sequential
) -> None:
    assert results(step.forward)[0] == ((), "float32")
    shapes = {name: (tuple(parameter.shape), "float32") for name, parameter in model.named_parameters()}
    assert dict(zip(step.gradients, results(step.backward), strict=True)) == shapes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_saved_says_what_it_is_and_where_it_comes_from(step: tpu_lowering.TpuStep) -> None:
    kept = {(one.memory, one.argument, one.shape) for one in step.saved}
    assert kept == {
        ("argument", "x", (ROWS, WIDTH)),
        ("argument", "2.weight", (WIDTH, HIDDEN)),  # the first weight is not read: x needs no gradient
        ("own", "", (ROWS, HIDDEN)),
        ("own", "", (ROWS, WIDTH)),
    }
    tanh = next(one for one in step.saved if one.shape == (ROWS, HIDDEN))
    assert (tanh.dtype, tanh.nbytes) == ("float32", 4 * ROWS * HIDDEN)
    assert tanh.where.endswith("in loss: return model(x).pow(2).mean()")
    own = [one for one in step.saved if one.memory == "own"]
    assert step.saved_bytes == sum(one.nbytes for one in own) == 4 * ROWS * (HIDDEN + WIDTH)
    _, given = hlo.entry_types(step.forward.hlo)
    taken, _ = hlo.entry_types(step.backward.hlo)
    for one in own:
        assert one.given is not None and one.taken is not None
        assert given[one.given].shape == taken[one.taken].shape == one.shape


def test_figures_are_those_of_both(step: tpu_lowering.TpuStep) -> None:
    forward, backward = step.programs
    assert step.hbm_bytes == forward.hbm_bytes + backward.hbm_bytes
    assert step.hbm_bytes == step.hbm_bytes_read + step.hbm_bytes_written
    assert step.bandwidth_bound_seconds == forward.bandwidth_bound_seconds + backward.bandwidth_bound_seconds
    assert step.schedule_cycles is None or forward.schedule_cycles is not None
    assert (step.chip.name, step.sent_bytes) == ("v5e", 0)
    first_layer = 4 * (HIDDEN * WIDTH + HIDDEN)  # its weight and bias, which the backward does not read
    assert first_layer <= step.held_bytes < first_layer + 8 * KIB  # with the second bias, and the loss
    assert step.peak_bytes == max(forward.peak_bytes, backward.peak_bytes + step.held_bytes)


def test_a_saved_step_comes_back(step: tpu_lowering.TpuStep, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "step.tpu"
    step.save(path)
    loaded = tpu_lowering.TpuStep.load(path)
    assert (loaded.saved, loaded.held_bytes, loaded.peak_bytes) == (step.saved, step.held_bytes, step.peak_bytes)
    for ours, theirs in zip(loaded.programs, step.programs, strict=True):
        assert (ours.hlo, ours.artifact, ours.executable) == (theirs.hlo, theirs.artifact, theirs.executable)
        assert ours.entry_operations == theirs.entry_operations
    step.forward.save(tmp_path / "program.tpu")
    for load, file, text in (
        (tpu_lowering.load, path, "expected a program, got a step\n  fix  read it with tpu_lowering.TpuStep.load(path)"),
        (tpu_lowering.TpuStep.load, tmp_path / "program.tpu", "expected a step, got a program\n  fix  read it with "
         "tpu_lowering.load(path)"),
    ):  # fmt: skip
        with pytest.raises(tpu_lowering.TpuLoweringError) as caught:
            load(file)
        assert caught.value.code == "TL109"
        assert text in str(caught.value)


def test_a_module_gives_gradients_of_its_inputs_too() -> None:
    made = compiled(net(), torch.empty(ROWS, WIDTH, requires_grad=True), options={"fuse": "never"})
    assert sorted(made.gradients) == ["0.bias", "0.weight", "2.bias", "2.weight", "input"]
    assert results(made.backward)[made.gradients.index("input")] == ((ROWS, WIDTH), "float32")
    assert {one.argument for one in made.saved} == {"0.weight", "2.weight", "input", ""}


def test_running_statistics_are_updated_in_place_and_draws_take_a_key() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
    made = compiled(model, torch.empty(2, 8, 16, 16), kwargs={}, options={"fuse": "never"})
    assert (made.forward.drawn_inputs, made.backward.drawn_inputs) == (("key",), ())
    assert "input_output_alias={" in made.forward.hlo.partition("\n")[0]
    assert made.forward.aliased_bytes > 0


def test_a_gradient_that_is_given_is_no_result() -> None:
    made = compiled(lambda x, y: (x + 1, y.exp()), *(torch.empty(8, 128, requires_grad=True) for _ in "xy"))
    assert made.gradients == ("y",)
    assert [(one.memory, one.given) for one in made.saved] == [("result", 1)]
    assert made.saved_bytes == 0
    alone = compiled(lambda x: x + 1, torch.empty(8, 128, requires_grad=True))
    assert (alone.gradients, alone.saved, alone.backward.hbm_bytes) == ((), (), 0)


def nothing_to_train(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def test_a_function_without_a_gradient_is_refused() -> None:
    with pytest.raises(tpu_lowering.TpuLoweringError) as caught:
        compiled(nothing_to_train, torch.empty(8, 128))
    assert str(caught.value) == (
        "[TL115] no gradient to compile a backward for: nothing_to_train\n"
        "  why  expected a result computed of an argument, parameter or other tensor that requires a gradient, got "
        "none\n"
        "  fix  call requires_grad_() on what is trained, or compile with backward=False"
    )
    with pytest.raises(tpu_lowering.TpuLoweringError) as caught:
        compiled(lambda x: x.view(-1), torch.empty(8, 128, requires_grad=True))  # a view, which no program computes
    assert caught.value.code == "TL115"
    with pytest.raises(tpu_lowering.TpuLoweringError) as caught:
        tpu_lowering.aot_compile(nothing_to_train, (torch.empty(8),), backward=1)  # type: ignore[call-overload]
    assert "expected True or False, got 1" in str(caught.value)


def test_kernels_are_taken_for_the_pair_by_the_bytes_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    softmax, x = functools.partial(torch.softmax, dim=-1), torch.empty(4096, 1024, requires_grad=True)
    kernels = compiled(softmax, x, target="tpu7x")
    assert all(program.vmem_bytes for program in kernels.programs)
    assert kernels.hbm_bytes == 5 * x.nbytes  # x and the softmax; the softmax and two gradients
    with_kernels, without = (float(text.split()[0]) for text in kernels.fusion.split(", ")[::2])
    assert with_kernels == kernels.hbm_bytes / 2**20 < without
    assert kernels.backward.fusion == kernels.fusion
    monkeypatch.setattr(tpu_lowering.TpuProgram, "hbm_bytes", 0)
    chosen = compiled(softmax, x, target="tpu7x")
    assert not any(program.vmem_bytes for program in chosen.programs)


def test_explain_shows_both_directions() -> None:
    fn = functools.partial(F.gelu, approximate="tanh")
    report = tpu_lowering.explain(fn, torch.randn(64, 256, requires_grad=True), target="v5e")
    chip = report.chip
    assert chip is not None
    assert [direction.name for direction in chip.directions] == ["forward", "backward"]
    assert chip.programs == (2, 2)
    assert chip.saved_bytes == 0  # x is an argument
    text = str(report)
    assert "v5e, as libtpu compiles it, forward" in text
    assert "v5e, as libtpu compiles it, backward" in text
    assert "saved for the backward" in text


def test_a_step_runs_on_all_devices_of_a_mesh() -> None:
    with tpu_lowering.fake_mesh({"data": 4}) as mesh:
        model = nn.Linear(WIDTH, WIDTH, bias=False)

        def loss(x: torch.Tensor) -> torch.Tensor:
            whole = torch.distributed._functional_collectives.all_gather_tensor_autograd(model.weight, 0, mesh)
            return (x @ whole.T).pow(2).sum()

        made = compiled(loss, torch.empty(ROWS, WIDTH), target="v5e:2x2", mesh=mesh)
    kinds = [[one.kind for one in program.collectives] for program in made.programs]
    assert kinds[0] == ["all-gather"] and len(kinds[1]) == 1
    assert made.sent_bytes == sum(program.sent_bytes for program in made.programs) > 0
    assert made.link_bound_seconds is not None


def test_capturing_a_function_without_gradients_gives_its_forward_alone() -> None:
    captured = aot.capture_step(nothing_to_train, (torch.empty(8),), {}, chips.find("v5e"), {})
    assert [one.program.name.partition("_")[0] for one in captured] == ["inference"]
