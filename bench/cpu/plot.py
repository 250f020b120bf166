"""``cpu.png``: kernels against plain JAX, models against eager, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import plots
from bench.cpu.goals import PLAIN_LIMIT, Entries, cases, ratio
from bench.store import Entry

SOURCE = "medians of ratios within rounds, whiskers are quartiles; measured on the CPU by python -m bench cpu"
MARKS: Mapping[str, tuple[str, str, str]] = {
    "ours": ("ours", plots.AFTER, "o"),
    "inductor": ("Inductor, C++", plots.BEFORE, "s"),
    "eager": ("eager", plots.DIRECT, "D"),
    "inductor_pallas": ("Inductor, Pallas", plots.BEFORE, "x"),
    "interpret": ("interpret", plots.INK, "|"),
}
"""Label, ink and marker of a side."""


def draw(entries: Entries) -> Figure | None:
    """The figure; None without kernels and models."""
    kernels, models = cases(entries, "kernels"), cases(entries, "models")
    panels = [
        (
            "time over plain jax.numpy's",
            kernels,
            "plain",
            ("interpret", "inductor_pallas", "eager", "inductor", "ours"),
        ),
        ("time over eager's", models, "eager", ("inductor", "ours")),
    ]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    height = 1.6 + 0.24 * max(len(panel[1]) for panel in panels)
    title = "Time of a call on the CPU, by what it is compared with"
    figure, axes = plots.new(5.2 * len(panels), height, title, len(panels), SOURCE)
    for one, (label, found, base, names) in zip(axes, panels, strict=True):
        dots(one, found, base, names)
        one.set_xlabel(f"{label} (log scale)")
        if base == "plain":
            one.axvline(PLAIN_LIMIT, color=plots.INK, linewidth=0.6, linestyle=":")
        one.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, fontsize=7)
    return figure


def dots(axes: Axes, found: Mapping[str, Entry], base: str, names: Sequence[str]) -> None:
    """A row a case, a mark a side: how many times the base's seconds it takes."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color=plots.INK, linewidth=0.6)
    for name in names:
        label, ink, marker = MARKS[name]
        rows = [(at, ratio(entry, name, base)) for at, entry in enumerate(found.values())]
        known = [(at, one) for at, one in rows if one is not None]
        if not known:
            continue
        middles = [one.median for _, one in known]
        whiskers = [[one.median - one.low for _, one in known], [one.high - one.median for _, one in known]]
        axes.errorbar(
            middles, [at for at, _ in known], xerr=whiskers, label=label, color=ink, marker=marker, markersize=4.5,
            linestyle="none", elinewidth=0.8,
        )  # fmt: skip
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.5)
    axes.set_axisbelow(True)
