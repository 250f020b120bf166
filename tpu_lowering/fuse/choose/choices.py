"""Which form of a computation to take: XLA's own, or one of several kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from tpu_lowering.codegen import load
from tpu_lowering.codegen.source import Source
from tpu_lowering.fuse.rows.row_kernel import RowKernel
from tpu_lowering.ir.kernels import Kernel
from tpu_lowering.ir.programs import Program

Made = tuple[Callable[..., Any], Sequence[jax.ShapeDtypeStruct]]
"""A function of arrays, to be lowered for a TPU, and the shapes and dtypes of the arrays."""


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """One way to compute something.

    Attributes:
        label: what a table calls it.
        make: makes it; may take a while, and may raise for what cannot be made.
    """

    label: str
    make: Callable[[], Made]


class Question(Protocol):
    """Forms that take the same operands and give the same results.

    Attributes:
        name: of what is computed.
        known_by: texts that are equal for equal questions, in other processes too.
        forms: the forms; what is taken without further knowledge first among the kernels.
        has_plain: whether the first is XLA's own; a kernel that moves no fewer bytes is then not taken.
        replaces_configs: whether some forms have another config than the user's kernel, which takes the user's leave.
    """

    @property
    def name(self) -> str: ...

    @property
    def known_by(self) -> Sequence[str]: ...

    @property
    def forms(self) -> Sequence[Form]: ...

    @property
    def has_plain(self) -> bool: ...

    @property
    def replaces_configs(self) -> bool: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """The forms of one region of the graph.

    Attributes:
        plain: the region as XLA would run it, as a program, and its source.
        kernels: kernels of different blocks, what is taken without further knowledge first.
    """

    plain: tuple[Program, Source]
    kernels: tuple[RowKernel, ...]
    has_plain: bool = True
    replaces_configs: bool = False

    @property
    def name(self) -> str:
        return self.kernels[0].name

    @property
    def known_by(self) -> Sequence[str]:
        return [self.plain[1].text, *(kernel.text for kernel in self.kernels)]

    @property
    def forms(self) -> Sequence[Form]:
        program, source = self.plain

        def plain() -> Made:
            return load.load(program, source, "mosaic"), load.input_specs(program)

        numbered = [
            Form(f"kernel {number}", lambda kernel=kernel: made(kernel))
            for number, kernel in enumerate(self.kernels, start=1)
        ]
        return [Form("XLA", plain), *numbered]


def made(kernel: Kernel) -> Made:
    """A kernel whose results are fresh, as a function of its other operands."""
    read = [at for at, operand in enumerate(kernel.operands) if operand.result is None]
    types = [kernel.operands[at].type for at in read]

    def run(*values: jax.Array) -> Any:
        given = dict(zip(read, values, strict=True))
        return kernel.form("mosaic")(*(given.get(at) for at in range(len(kernel.operands))))

    return run, [jax.ShapeDtypeStruct(type_.shape, type_.dtype) for type_ in types]


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
    """Chooses between forms."""

    def choose(self, question: Question) -> Choice | None:
        """The choice; None if nothing is known, and the first kernel is taken."""


class Speed(Protocol):
    """How fast a chip is.

    Attributes:
        hbm_bytes_per_second: bandwidth of its HBM.
        cycles_per_second: its clock.
    """

    @property
    def hbm_bytes_per_second(self) -> float: ...

    @property
    def cycles_per_second(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Score:
    """What a compiler says of one form.

    Attributes:
        hbm_bytes: HBM traffic; of a kernel whose copies the compiler does not list, by its operands and results.
        cycles: its simulated static schedule; None where there is none.
        error: why it cannot be compiled, or "".
        operand_bytes: operands and results of all operations, each once; None for ``hbm_bytes``. What a kernel fetches
            again is not in it, so two forms compare by it where only one has its copies listed.
        listed: whether ``hbm_bytes`` has every copy.
    """

    hbm_bytes: int = 0
    cycles: int | None = None
    error: str = ""
    operand_bytes: int | None = None
    listed: bool = True

    def seconds(self, chip: Speed) -> float:
        """The least that a run can take: the larger of bytes over bandwidth and cycles over clock. Without cycles,
        bytes over bandwidth."""
        return max(self.hbm_bytes / chip.hbm_bytes_per_second, (self.cycles or 0) / chip.cycles_per_second)


@dataclasses.dataclass(frozen=True)
class Answer:
    """A question, answered.

    Attributes:
        name: of what is computed.
        labels: of its forms.
        scores: what the compiler says of each; None where it was not asked, because time was up.
        has_plain: whether the first form is XLA's own.
        choice: what was chosen.
    """

    name: str
    labels: tuple[str, ...]
    scores: tuple[Score | None, ...]
    has_plain: bool
    choice: Choice

    @property
    def chosen(self) -> int:
        """Position of the form that was chosen."""
        return 0 if self.choice.kernel is None else self.choice.kernel + self.has_plain


NEAR = 1.01
"""Byte counts that differ by no more are equal: time decides."""


def best(plain: Score | None, kernels: Sequence[Score | None], chip: Speed) -> Choice:
    """The kernel that moves the fewest bytes, of equal ones the one that can be the fastest, of equal ones that of the
    shortest schedule; XLA's own form if no kernel moves fewer bytes than it. Where the copies of some kernel are not
    listed, kernels compare by their operands and results.

    Args:
        plain: XLA's own form; None if there is none.
        kernels: one or more; None for those that are not known.
        chip: what turns bytes and cycles into time.
    """
    possible = [(at, score) for at, score in enumerate(kernels) if score is not None and not score.error]
    if not possible:
        errors = [score.error for score in kernels if score is not None]
        return Choice(None, f"no kernel compiles: {errors[0]}" if errors else "no kernel was compiled in time")
    all_listed = all(score.listed for _, score in possible)

    def moved(score: Score) -> int:
        return score.hbm_bytes if all_listed or score.operand_bytes is None else score.operand_bytes

    least = min(moved(score) for _, score in possible)
    near = [(at, score) for at, score in possible if moved(score) <= NEAR * least]
    at, chosen = min(near, key=lambda item: (item[1].cycles is None, item[1].seconds(chip), item[1].cycles or 0))
    if plain is None:
        return Choice(at, f"{_figures(chosen)} against {_figures(kernels[0])} as it is, as the compiler says")
    figures = f"{chosen.hbm_bytes / 2**20:.1f} MiB against {plain.hbm_bytes / 2**20:.1f} by XLA"
    if not plain.error and chosen.hbm_bytes >= plain.hbm_bytes:
        return Choice(None, f"the best kernel would move {figures}")
    return Choice(at, f"{figures}, as the compiler says")


def _figures(score: Score | None) -> str:
    """A score in words."""
    if score is None or score.error:
        return "nothing known" if score is None else "none that compiles"
    cycles = "" if score.cycles is None else f" and {score.cycles:,} cycles"
    return f"{score.hbm_bytes / 2**20:.1f} MiB{cycles}"
