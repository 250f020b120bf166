"""The tables of ``bench.against_xla``: a row a case, the chips side by side, and a summary of each chip."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from bench import TARGETS
from bench.markdown import NONE, mib, ratio, table
from bench.store import Entry

Entries = Mapping[str, Entry]


@dataclasses.dataclass(frozen=True)
class Compared:
    """A case on a chip.

    Attributes:
        alone, fused: HBM bytes by XLA alone, and with the kernels that the estimates make, both from one source.
        kernels: their names; empty if the program is the same.
        is_same: whether both forms are one program before XLA compiles them.
    """

    alone: int
    fused: int
    kernels: tuple[str, ...]
    is_same: bool

    @property
    def ratio(self) -> float:
        return self.fused / self.alone if self.alone else 1.0

    @staticmethod
    def of(entries: Entries, group: str, case: str, target: str) -> Compared | None:
        """None if a form has no figures."""
        rows = [entries.get(f"{group}/{case}/{row}/{target}") for row in ("xla", "fused")]
        found = [entry for entry in rows if entry is not None and "error" not in entry]
        if len(found) != 2:
            return None
        alone, fused = found
        name = "operand_bytes" if alone["kernels_by_operands"] or fused["kernels_by_operands"] else "hbm_bytes"
        return Compared(alone[name], fused[name], tuple(fused["kernels"]), alone["same_as"] == fused["same_as"])


def cases_of(entries: Entries, group: str) -> list[str]:
    """The cases of a group, those with a kernel on some chip first."""
    names = dict.fromkeys(key.split("/")[1] for key in sorted(entries) if key.startswith(f"{group}/"))

    def has_kernels(name: str) -> bool:
        return any((one := Compared.of(entries, group, name, target)) and one.kernels for target in TARGETS)

    return sorted(names, key=lambda name: not has_kernels(name))


def against_table(entries: Entries, group: str, cases: Sequence[str]) -> str:
    """HBM MiB of every case that has a kernel on some chip."""
    rows: list[tuple[str, ...]] = []
    for case in cases:
        found = [Compared.of(entries, group, case, target) for target in TARGETS]
        kernels = {name: None for one in found if one for name in one.kernels}
        if kernels:
            cells = [
                (mib(one.alone), mib(one.fused), ratio(one.fused, one.alone)) if one else (NONE,) * 3 for one in found
            ]
            rows.append((case, *(cell for three in cells for cell in three), str(len(kernels))))
    three = [(f"{target} XLA", "with kernels", "ratio") for target in TARGETS]
    return table(("case", *(cell for cells in three for cell in cells), "kernels"), rows)


def summary(entries: Entries, group: str, cases: Sequence[str], what: str) -> str:
    """A line a chip: how many cases have kernels, how many are the same program, and the largest ratio."""
    lines: list[str] = []
    for target in TARGETS:
        found = {case: one for case in cases if (one := Compared.of(entries, group, case, target)) is not None}
        if found:
            fused = [one for one in found.values() if one.kernels]
            worst = max(found, key=lambda case: found[case].ratio)
            more = [case for case, one in found.items() if one.ratio > 1]
            lines.append(
                f"- {target}, {len(found)} {what}: {len(fused)} with kernels, "
                f"{sum(one.is_same for one in found.values())} the same program; "
                f"the largest ratio is {found[worst].ratio:.2f} ({worst if fused else 'all'}), "
                f"above 1.00: {', '.join(more) or 'none'}.\n"
            )
    return "".join(lines)


def opinfo_section(entries: Entries) -> str:
    """Entries of torch's operator database."""
    from bench.opinfo_cases import LARGEST

    cases = cases_of(entries, "opinfo")
    largest = [case for case in cases if case in LARGEST]
    return f"""## torch's operator database: XLA alone, and with the kernels that the estimates make

HBM MiB, float32. The 50 entries with the largest samples, and other entries with a softmax, a normalisation or a
running sum. Sizes of samples are multiplied as `bench/opinfo.py` says. `aot_compile` returns the form that moves fewer
bytes; these are the figures of programs that go by the estimates. Cases without a kernel are not listed.

{summary(entries, "opinfo", largest, "largest")}{summary(entries, "opinfo", cases, "in all")}
{against_table(entries, "opinfo", cases)}"""


def suite_section(entries: Entries) -> str:
    """Kernels and models."""
    cases = cases_of(entries, "suite")
    return f"""## Kernels and models: XLA alone, and with the kernels that the estimates make

HBM MiB. The nine kernels; models of `bench/zoo.py` at its toy sizes, the forward, and the forward and backward of a
loss; and forwards at the sizes of `bench/fusion_models.py`.

{summary(entries, "suite", cases, "cases")}
{against_table(entries, "suite", cases)}"""
