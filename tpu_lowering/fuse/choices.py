"""Which form of a region to take: XLA's own, or one of several kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from tpu_lowering.codegen.source import Source
from tpu_lowering.fuse.kernels import RowKernel
from tpu_lowering.ir.programs import Program


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """The forms of one region. All take the same operands and give the same results.

    Attributes:
        plain: the region as XLA would run it, as a program, and its source.
        kernels: kernels of different blocks, what is taken without further knowledge first.
    """

    plain: tuple[Program, Source]
    kernels: tuple[RowKernel, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        kernel: position among the kernels; None for XLA's own form.
        reason: why, in one sentence with figures.
    """

    kernel: int | None
    reason: str


class Chooser(Protocol):
    """Chooses between the forms of a region."""

    def choose(self, candidates: Candidates) -> Choice | None:
        """The choice; None if nothing is known, and the first kernel is taken."""


@dataclasses.dataclass(frozen=True)
class Score:
    """What a compiler says of one form.

    Attributes:
        hbm_bytes: HBM traffic.
        cycles: its simulated static schedule; None where there is none.
        error: why it cannot be compiled, or "".
    """

    hbm_bytes: int = 0
    cycles: int | None = None
    error: str = ""


NEAR = 1.01
"""Byte counts that differ by no more are equal: cycles decide."""


def best(plain: Score, kernels: Sequence[Score]) -> Choice:
    """The kernel that moves the fewest bytes, of equal ones that of the shortest schedule; XLA's own form if no kernel
    moves fewer bytes than it."""
    possible = [(at, score) for at, score in enumerate(kernels) if not score.error]
    if not possible:
        return Choice(None, f"no kernel compiles: {kernels[0].error}")
    least = min(score.hbm_bytes for _, score in possible)
    near = [(at, score) for at, score in possible if score.hbm_bytes <= NEAR * least]
    at, chosen = min(near, key=lambda item: (item[1].cycles is None, item[1].cycles or 0))
    figures = f"{chosen.hbm_bytes / 2**20:.1f} MiB against {plain.hbm_bytes / 2**20:.1f} by XLA"
    if not plain.error and chosen.hbm_bytes >= plain.hbm_bytes:
        return Choice(None, f"the best kernel would move {figures}")
    return Choice(at, f"{figures}, as the compiler says")
