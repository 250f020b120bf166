"""``plan``: how much memory and traffic a step takes on many meshes, of which a few are compiled.

Bytes sent along an axis of n devices are ``(n - 1) / n`` of a sum of parts, as rings send them, each of which is cut
along some of the axes: what is cut along none stays as it is, what is cut along data and model is divided by both
sizes. No part is negative.

Memory and HBM bytes are no such sums, for the compiler keeps what is small enough in VMEM. Their logarithms are
interpolated, as polynomials of degree two in the logarithms of the sizes.

Meshes of the fewest and the most chips that are asked for are compiled, and one between them; further ones between them
are compiled to hold the model against.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize

from tpu_lowering import aot, errors, offenders
from tpu_lowering.ir import chips
from tpu_lowering.ir.chips import Chip
from tpu_lowering.runtime.aot.program import TpuProgram
from tpu_lowering.runtime.aot.slices import fake_mesh, slice_of, topology_of

BYTES, MEMORY = 0.10, 0.05
"""How far the model may be from what it was not fitted to: bytes that are moved or sent, and peak memory."""

Sizes = tuple[int, ...]
"""Sizes of a mesh, one for each axis."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """A step on one device of a mesh.

    Attributes:
        peak_bytes: memory, the larger of a forward's and a backward's.
        hbm_bytes: HBM bytes moved.
        sent_bytes: bytes sent along each combination of axes.
    """

    peak_bytes: float
    hbm_bytes: float
    sent_bytes: Mapping[tuple[str, ...], float]

    @property
    def all_sent_bytes(self) -> float:
        return sum(self.sent_bytes.values())

    @staticmethod
    def of(programs: Sequence[TpuProgram]) -> Figures:
        """What the compiler says of a step."""
        sent: dict[tuple[str, ...], float] = {}
        for one in (one for program in programs for one in program.collectives):
            sent[one.axes] = sent.get(one.axes, 0) + one.total_sent_bytes
        peak = max(program.peak_bytes for program in programs)
        return Figures(peak, sum(program.hbm_bytes for program in programs), sent)


@dataclasses.dataclass(frozen=True)
class Fit:
    """One quantity, as a sum of parts.

    Attributes:
        parts: for each set of axes, by position, the bytes that are cut along them.
    """

    parts: Mapping[tuple[int, ...], float]

    def at(self, sizes: Sizes) -> float:
        """What it is on a mesh."""
        return sum(size / math.prod(sizes[axis] for axis in axes) for axes, size in self.parts.items())

    @staticmethod
    def to(points: Mapping[Sizes, float]) -> Fit:
        """The parts that come nearest, in proportion, to what meshes have; they are not negative."""
        count = len(next(iter(points)))
        sets = [axes for size in range(count + 1) for axes in itertools.combinations(range(count), size)]
        known = [(sizes, value) for sizes, value in points.items() if value > 0]
        if not known:
            return Fit({(): 0.0})
        rows = [[1 / math.prod(sizes[axis] for axis in axes) / value for axes in sets] for sizes, value in known]
        found, _ = scipy.optimize.nnls(np.array(rows), np.ones(len(rows)))
        return Fit({axes: float(part) for axes, part in zip(sets, found, strict=True) if part > 0})


@dataclasses.dataclass(frozen=True)
class Surface:
    """One quantity, interpolated.

    Attributes:
        coefficients: of ``_terms``, for its logarithm.
    """

    coefficients: tuple[float, ...]

    def at(self, sizes: Sizes) -> float:
        """What it is on a mesh."""
        return math.exp(sum(c * term for c, term in zip(self.coefficients, _terms(sizes), strict=True)))

    @staticmethod
    def to(points: Mapping[Sizes, float]) -> Surface:
        """The polynomial that comes nearest to what meshes have."""
        rows = np.array([_terms(sizes) for sizes in points])
        found, *_ = np.linalg.lstsq(rows, np.log(np.maximum(1.0, list(points.values()))), rcond=None)
        return Surface(tuple(float(one) for one in found))


def _terms(sizes: Sizes) -> list[float]:
    """The terms of a polynomial of degree two in the logarithms of sizes."""
    logarithms = [math.log2(size) for size in sizes]
    return [1.0, *logarithms, *(a * b for a, b in itertools.combinations_with_replacement(logarithms, 2))]


@dataclasses.dataclass(frozen=True)
class Model:
    """A step on any mesh.

    Attributes:
        axes: names.
        peak: memory.
        hbm: HBM bytes.
        sent: for each combination of axes, that of the bytes which a ring would send all of.
    """

    axes: tuple[str, ...]
    peak: Surface
    hbm: Surface
    sent: Mapping[tuple[str, ...], Fit]

    @staticmethod
    def of(axes: tuple[str, ...], points: Mapping[Sizes, Figures]) -> Model:
        """The model that compiled meshes give."""
        along = dict.fromkeys(key for figures in points.values() for key in figures.sent_bytes)
        sent = {
            key: Fit.to({
                sizes: figures.sent_bytes.get(key, 0) / _share(key, axes, sizes) for sizes, figures in points.items()
            })
            for key in along
        }  # fmt: skip
        peak = Surface.to({sizes: figures.peak_bytes for sizes, figures in points.items()})
        return Model(axes, peak, Surface.to({sizes: figures.hbm_bytes for sizes, figures in points.items()}), sent)

    def at(self, sizes: Sizes) -> Figures:
        """What it says of a mesh."""
        sent = {key: fit.at(sizes) * _share(key, self.axes, sizes) for key, fit in self.sent.items()}
        return Figures(self.peak.at(sizes), self.hbm.at(sizes), sent)


def _share(along: Sequence[str], axes: Sequence[str], sizes: Sizes) -> float:
    """What part of all bytes a ring along axes sends; of groups that are no product of axes, all."""
    if not along:
        return 1.0
    count = math.prod(sizes[axes.index(axis)] for axis in along)
    return (count - 1) / count if count > 1 else 0.0


@dataclasses.dataclass(frozen=True)
class Row:
    """A mesh on so many chips.

    Attributes:
        chips: how many.
        sizes: of the mesh.
        figures: what the model says.
        fits: whether its memory is there.
        hbm_seconds, link_seconds: no step can take less; links None where no bandwidth is published.
    """

    chips: int
    sizes: Sizes
    figures: Figures
    fits: bool
    hbm_seconds: float
    link_seconds: float | None

    @property
    def seconds(self) -> float:
        return max(self.hbm_seconds, self.link_seconds or 0.0)

    @property
    def bound(self) -> str:
        """What bounds it."""
        if not self.fits:
            return "memory"
        return "links" if (self.link_seconds or 0.0) > self.hbm_seconds else "HBM"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What ``plan`` found.

    Attributes:
        chip: for which.
        axes: of the meshes.
        compiled: what the compiler says of the meshes that the model was fitted to.
        checked: of those that it was held against.
        model: it.
        rows: the best meshes for each number of chips.
    """

    chip: Chip
    axes: tuple[str, ...]
    compiled: Mapping[Sizes, Figures]
    checked: Mapping[Sizes, Figures]
    model: Model
    rows: tuple[Row, ...]

    def misses(self, sizes: Sizes) -> tuple[float, float, float]:
        """By how much the model misses a compiled mesh: peak memory, HBM bytes, bytes sent."""
        true, said = self.checked[sizes], self.model.at(sizes)
        pairs = (
            (said.peak_bytes, true.peak_bytes), (said.hbm_bytes, true.hbm_bytes),
            (said.all_sent_bytes, true.all_sent_bytes),
        )  # fmt: skip
        first, second, third = (guess / value - 1 if value else float(guess > 0) for guess, value in pairs)
        return first, second, third

    @property
    def holds(self) -> bool:
        """Whether the model is as near to all meshes that it was not fitted to as it has to be."""
        return all(
            abs(memory) <= MEMORY and max(abs(moved), abs(sent)) <= BYTES
            for memory, moved, sent in map(self.misses, self.checked)
        )


def axes_of(make: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the axes of a function of a mesh and of one size for each axis.

    Raises:
        TpuLoweringError: TL112.
    """
    names = tuple(inspect.signature(make).parameters)[1:]
    if not names:
        raise errors.wrong_argument(
            "FUNCTION", "a function of a mesh and of one size for each axis, got none of them",
            "def step(mesh, data, model): ... return fn, args",
        )  # fmt: skip
    return names


def plan(make: Callable[..., Any], chip: Chip, counts: Sequence[int], best: int = 3, fuse: str = "tpu") -> Plan:
    """Compiles a step for a few meshes, models others, and holds the model against compiled ones.

    Args:
        make: takes a ``DeviceMesh`` and the size of each axis; gives a function and its arguments for one rank. It
            raises ``ValueError`` for a mesh that the step does not take.
        chip: which TPU.
        counts: numbers of chips.
        best: how many meshes to keep for each.
        fuse: as the backend's option.

    Raises:
        TpuLoweringError: TL112, TL727 where too few meshes compile to fit a model, and any code of compiling.
    """
    axes = axes_of(make)
    fitted, others = meshes_to_compile(chip, counts, len(axes), functools.partial(_takes, make, axes))
    wanted = len(_terms((2,) * len(axes)))
    if len(fitted) < wanted or not others:
        raise errors.refuse(
            "TL727",
            offenders.name_of(make),
            f"expected {wanted} meshes or more of {len(axes)} axes to fit a model to, and one to check it, got "
            f"{len(fitted)} and {len(others)} that the step takes and libtpu has a topology for",
            "ask for more numbers of chips, or let the step take more meshes",
        )
    compiled, checked = (
        {sizes: step_on(make, axes, sizes, chip, fuse) for sizes in chosen} for chosen in (fitted, others)
    )
    model = Model.of(axes, compiled)
    rows = [row for count in counts for row in best_rows(make, axes, model, count, chip, best)]
    return Plan(chip, axes, compiled, checked, model, tuple(rows))


def counts_of(text: str) -> tuple[int, ...]:
    """Numbers of chips: "16", or "8..64" for 8, 16, 32 and 64.

    Raises:
        TpuLoweringError: TL112.
    """
    found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 0 < first <= last or first & (first - 1):
        raise errors.wrong_argument(
            "--chips", f"a power of two, or two of them as in 8..64, got {text!r}", "--chips 8..64"
        )
    return tuple(first * 2**at for at in range((last // first).bit_length()))


def meshes_to_compile(
    chip: Chip, counts: Sequence[int], axes: int, takes: Callable[[Sizes], bool]
) -> tuple[list[Sizes], list[Sizes]]:
    """Meshes to fit a model to, and others between them to check it with; two devices or more along each axis.

    Args:
        chip: which TPU.
        counts: numbers of chips.
        axes: how many axes.
        takes: whether the step takes a mesh.
    """
    least = 2 ** (axes + 1)
    first = max(counts[0] * chip.devices, least)
    while topology_of(chip, first) is None and first < 8 * least:
        first *= 2
    last = max(counts[-1] * chip.devices, 16 * first)
    while topology_of(chip, last) is None and last > first:
        last //= 2
    while last < 16 * first and first > max(least, 4 * chip.devices):
        first //= 2
    middle = first * 2 ** ((last // first).bit_length() // 2)

    def grids(count: int) -> list[Sizes]:
        return [one for one in _grids(count, axes) if min(one) > 1 and topology_of(chip, count) and takes(one)]

    each = axes * (axes + 1) // 2
    between = grids(middle)
    fitted = [*_spread(grids(first), each), *_spread(between, axes), *_spread(grids(last), each)]
    further = [*between, *grids(middle // 2), *grids(2 * middle)]
    return fitted, [one for one in further if one not in fitted][:2]


def _spread(found: Sequence[Sizes], count: int) -> list[Sizes]:
    """So many of some meshes, evenly spread; of one the middle."""
    if count == 1 or len(found) <= count:
        return [found[len(found) // 2]] if count == 1 and found else list(found)
    return [found[at * (len(found) - 1) // (count - 1)] for at in range(count)]


def step_on(make: Callable[..., Any], axes: Sequence[str], sizes: Sizes, chip: Chip, fuse: str) -> Figures:
    """What the compiler says of a step on a mesh."""
    target = topology_of(chip, math.prod(sizes))
    assert target is not None
    placed = chips.find(target)
    with fake_mesh(dict(zip(axes, sizes, strict=True))) as mesh:
        fn, args = make(mesh, *sizes)
        captured = aot.capture_step(fn, args, {}, placed, {"fuse": fuse}, (), slice_of(target, placed, mesh))
    return Figures.of([aot.compile_captured(one, placed, True, False) for one in captured])


def best_rows(
    make: Callable[..., Any], axes: Sequence[str], model: Model, count: int, chip: Chip, best: int
) -> list[Row]:
    """The meshes of so many chips that fit, with the least time first; those that do not fit come last."""
    sizes = [one for one in _grids(count * chip.devices, len(axes)) if min(one) > 1]
    rows = sorted(
        (row_of(model, one, count, chip) for one in sizes),
        key=lambda row: (not row.fits, row.seconds if row.fits else row.figures.peak_bytes),
    )
    return list(itertools.islice((row for row in rows if _takes(make, axes, row.sizes)), best))


def _takes(make: Callable[..., Any], axes: Sequence[str], sizes: Sizes) -> bool:
    """Whether a step takes a mesh."""
    with fake_mesh(dict(zip(axes, sizes, strict=True))) as mesh:
        try:
            make(mesh, *sizes)
        except ValueError:
            return False
    return True


def _grids(count: int, axes: int) -> list[Sizes]:
    """All sizes of powers of two that make so many devices."""
    if axes == 1:
        return [(count,)]
    halves = [2**power for power in range(count.bit_length()) if count % 2**power == 0]
    return [(first, *rest) for first in halves for rest in _grids(count // first, axes - 1)]


def row_of(model: Model, sizes: Sizes, count: int, chip: Chip) -> Row:
    """What a model says of a mesh on so many chips."""
    figures = model.at(sizes)
    links = None
    if chip.link_bytes_per_second is not None:
        links = chip.devices * figures.all_sent_bytes / (2 * chip.dimensions * chip.link_bytes_per_second)
    return Row(
        count,
        sizes,
        figures,
        figures.peak_bytes <= chip.hbm_bytes,
        figures.hbm_bytes / chip.device_bytes_per_second,
        links,
    )
