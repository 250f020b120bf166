"""``plan``: a model of meshes that are not compiled, held against some that are."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpu_lowering import errors
from tpu_lowering.__main__ import main
from tpu_lowering.ir import chips
from tpu_lowering.report.plan import (
    Figures,
    Fit,
    Model,
    Plan,
    Sizes,
    Surface,
    axes_of,
    counts_of,
    meshes_to_compile,
    row_of,
)
from tpu_lowering.runtime.aot.slices import topology_of

AXES = ("data", "model")
MESHES: list[Sizes] = list(itertools.product((2, 4, 8), repeat=2))
GIB = 1 << 30

STEP = '''
import torch
from torch.distributed._functional_collectives import all_gather_tensor_autograd, all_reduce

ROWS, WIDTH = 8192, 4096


class Step(torch.nn.Module):
    """Rows over data; a weight over both axes, gathered over data."""

    def __init__(self, mesh, data, model, trained):
        super().__init__()
        self.mesh = mesh
        weight = torch.empty(WIDTH // data, WIDTH // model, dtype=torch.bfloat16)
        self.weight = torch.nn.Parameter(weight, requires_grad=trained)

    def forward(self, x):
        whole = all_gather_tensor_autograd(self.weight, 0, (self.mesh, 0))
        return torch.relu(x @ whole).float().square().sum()


def step_of(mesh, data, model, trained):
    if ROWS % data or data > 16:
        raise ValueError
    return Step(mesh, data, model, trained), (torch.empty(ROWS // data, WIDTH, dtype=torch.bfloat16),)


def step(mesh, data, model):
    return step_of(mesh, data, model, False)


def training(mesh, data, model):
    return step_of(mesh, data, model, True)


def one_mesh(mesh, data, model):
    if (data, model) != (2, 2):
        raise ValueError
    return step(mesh, data, model)


def no_axes(mesh):
    return None
'''


@given(st.lists(st.integers(0, 1 << 40), min_size=4, max_size=4))
def test_parts_are_found_from_as_many_meshes_as_there_are_parts(parts: list[int]) -> None:
    whole, data, model, both = parts
    points = {(d, m): whole + data / d + model / m + both / (d * m) for d, m in MESHES}
    found = Fit.to(points)
    for sizes in ((8, 2), (2, 16), (64, 8)):
        d, m = sizes
        true = whole + data / d + model / m + both / (d * m)
        assert found.at(sizes) == pytest.approx(true, rel=1e-3, abs=1)


def test_no_part_is_negative() -> None:
    found = Fit.to({(d, m): float(d * m) for d, m in MESHES})  # more devices, more bytes: no sum of parts does that
    assert all(part > 0 for part in found.parts.values())
    assert Fit.to({(2, 2): 0.0, (4, 4): 0.0}).at((8, 8)) == 0


def figures(sizes: tuple[int, ...]) -> Figures:
    """A step with weights over both axes, gathered over data, and activations over data."""
    d, m = sizes
    weights, activations = 64 * GIB, 32 * GIB
    peak = weights / (d * m) + weights / m + activations / d
    return Figures(peak, 3 * peak, {("data",): (d - 1) / d * weights / m, ("model",): (m - 1) / m * activations / d})


def test_the_model_of_a_step_that_is_such_a_sum_is_exact() -> None:
    model = Model.of(AXES, {sizes: figures(sizes) for sizes in MESHES})
    for sizes in ((8, 4), (16, 16), (4, 1)):
        said, true = model.at(sizes), figures(sizes)
        assert said.peak_bytes == pytest.approx(true.peak_bytes, rel=0.25)  # between meshes it is nearer
        assert dict(said.sent_bytes) == pytest.approx(dict(true.sent_bytes), rel=1e-6)
    assert model.at((4, 1)).sent_bytes["model",] == 0


def test_groups_that_are_no_axes_send_what_they_send() -> None:
    points = {sizes: Figures(GIB, GIB, {(): 64.0 / sizes[0]}) for sizes in MESHES}
    assert Model.of(AXES, points).at((16, 2)).all_sent_bytes == pytest.approx(4.0)


def test_what_bounds_a_mesh() -> None:
    model, v5e = Model.of(AXES, {sizes: figures(sizes) for sizes in MESHES}), chips.find("v5e")
    small, large = row_of(model, (4, 4), 16, v5e), row_of(model, (16, 16), 256, v5e)
    assert (small.fits, small.bound) == (False, "memory")
    assert large.fits
    assert large.link_seconds is not None
    assert large.link_seconds == pytest.approx(large.figures.all_sent_bytes / (4 * 5e10))
    assert large.bound == ("links" if large.link_seconds > large.hbm_seconds else "HBM")
    assert large.seconds == max(large.link_seconds, large.hbm_seconds)
    assert row_of(model, (16, 16), 256, chips.find("v4")).link_seconds is None


def test_a_model_that_misses_does_not_hold() -> None:
    compiled = {sizes: figures(sizes) for sizes in MESHES}
    model, checked = Model.of(AXES, compiled), {(8, 2): figures((8, 2))}
    held = Plan(chips.find("v5e"), AXES, compiled, checked, model, ())
    assert held.holds
    said = model.at((8, 2)).peak_bytes
    more = dataclasses.replace(figures((8, 2)), peak_bytes=1.06 * said)
    missed = dataclasses.replace(held, checked={(8, 2): more})
    assert missed.misses((8, 2))[0] == pytest.approx(1 / 1.06 - 1)
    assert not missed.holds


def test_hbm_bytes_are_interpolated() -> None:
    true = {(d, m): 1e9 / d + 3e9 / m**1.2 for d, m in MESHES}
    found = Surface.to({sizes: value for sizes, value in true.items() if sizes != (4, 4)})
    assert found.at((4, 4)) == pytest.approx(true[4, 4], rel=0.05)


@pytest.mark.parametrize(("axes", "terms"), [(1, 3), (2, 6), (3, 10)])
@pytest.mark.parametrize("chip", chips.CHIPS, ids=lambda chip: chip.name)
def test_enough_meshes_are_compiled_and_others_checked(chip: chips.Chip, axes: int, terms: int) -> None:
    for counts in ((8, 16, 32, 64), (16,), (16, 256)):
        fitted, checked = meshes_to_compile(chip, counts, axes, lambda sizes: True)
        assert len(fitted) >= terms
        assert len(checked) == 2
        assert not set(fitted) & set(checked)
        assert all(topology_of(chip, math.prod(sizes)) for sizes in [*fitted, *checked])
        places = [math.prod(sizes) for sizes in fitted]
        assert all(min(places) < math.prod(sizes) < max(places) for sizes in checked)


def test_numbers_of_chips() -> None:
    assert counts_of("8..64") == (8, 16, 32, 64)
    assert counts_of("16") == (16,)
    for text in ("", "0", "12", "64..8", "8-64"):
        with pytest.raises(errors.TpuLoweringError, match="a power of two"):
            counts_of(text)


def test_axes_are_the_names_of_sizes() -> None:
    def step(mesh: Any, data: int, model: int) -> None:
        """Of two axes."""

    assert axes_of(step) == AXES


@pytest.mark.sweep
@pytest.mark.parametrize("step", ["step", "training"])
def test_the_command_compiles_models_and_checks(
    step: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "steps.py"
    file.write_text(STEP)
    code = main(["plan", f"{file}:{step}", "--target", "v5e", "--chips", "16..64", "--fuse", "never"])
    text = capsys.readouterr().out
    assert "The model against what libtpu says for v5e" in text
    assert ("The model holds" in " ".join(text.split())) is (code == 0)
    assert "data 16, model 4" in text
    assert "data 32" not in text  # the step does not take it
    assert main(["plan", f"{file}:one_mesh", "--target", "v5e", "--chips", "16"]) == 1
    assert "[TL727] too few meshes to fit a model to: one_mesh" in capsys.readouterr().err
    assert main(["plan", f"{file}:no_axes", "--target", "v5e", "--chips", "16"]) == 1
    assert "def step(mesh, data, model)" in capsys.readouterr().err
