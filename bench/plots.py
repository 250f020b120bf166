"""Plots of results: few inks, labels beside what they name, zero-based axes."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.markdown import MIB
from bench.tables import Entries, figures, kernel_names, targets_of, traffic, value

BEFORE, AFTER, DIRECT = "#c2703d", "#2f6f8f", "#a9b4bb"
INK = "#333333"
SOURCE = "HBM traffic as libtpu compiles it; not measured on a TPU"
STYLE = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}


def new(width: float, height: float, title: str, columns: int = 1, source: str = SOURCE) -> tuple[Figure, list[Axes]]:
    """A figure of a size in inches, with a title and the source of its figures."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        figure.supxlabel(source, x=0.99, ha="right", fontsize=7)
    return figure, axes


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a PNG without the date and the program that made it, so that equal figures are equal files."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, dpi=130, metadata={"Software": None})


def growth(entries: Entries) -> Figure | None:
    """HBM traffic of `exp` by the size of its output; None without figures."""
    names = {key.split("/")[1] for key in entries if key.startswith("growth/")}
    sizes = sorted(int(name.split()[0]) for name in names)
    lines = {
        row: [value(figures(entries, "growth", f"{size} MiB", row, "tpu7x"), "hbm_bytes") for size in sizes]
        for row in ("before", "after")
    }
    if not sizes or any(count is None for line in lines.values() for count in line):
        return None
    figure, (axes,) = new(6.4, 3.8, "exp, float32, tpu7x: HBM traffic by size of the output")
    for row, color, label in (("before", BEFORE, "without passes"), ("after", AFTER, "with passes")):
        heights = [(count or 0) / MIB for count in lines[row]]
        axes.plot(sizes, heights, color=color, marker="o", markersize=4, linewidth=1.6, clip_on=False)
        text = f"{label}\n{heights[-1]:,.0f} MiB"
        axes.annotate(text, (sizes[-1], heights[-1]), (8, 0), textcoords="offset points", va="center", color=color)
    axes.set(xlabel="output, MiB", ylabel="HBM traffic, MiB", xlim=(0, sizes[-1] * 1.02), ylim=(0, None))
    return figure


def kernels(entries: Entries) -> Figure | None:
    """HBM traffic of every kernel in its three forms, relative to the form with passes; None without figures."""
    target = next(iter(targets_of(entries, "kernels")), "")
    found: list[tuple[str, list[int]]] = []
    for name in kernel_names(entries):
        counts, source = traffic(
            [figures(entries, "kernels", name, row, target) for row in ("before", "after", "direct")]
        )
        known = [count for count in counts if count is not None]
        if len(known) == len(counts):
            found.append((name if source == "DMA" else f"{name}*", known))
    if not found:
        return None
    figure, (axes,) = new(6.4, 5.4, f"Nine kernels, {target}: HBM traffic relative to the program with passes")
    bars(axes, [name for name, _ in found], [counts for _, counts in found])
    return figure


def bars(axes: Axes, names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    """Three horizontal bars a kernel, in units of its second figure, each with its MiB."""
    forms = (("without passes", BEFORE), ("with passes", AFTER), ("by hand", DIRECT))
    height = 0.26
    for form, (label, color) in enumerate(forms):
        at = [index + (form - 1) * height for index in range(len(names))]
        drawn = axes.barh(at, [row[form] / row[1] for row in counts], height * 0.9, color=color, label=label)
        axes.bar_label(drawn, [f"{row[form] / MIB:,.0f} MiB" for row in counts], padding=3, fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 2.5), xlabel="HBM traffic, program with passes = 1    (* by operands: a lower bound)")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.07), ncols=3, fontsize=8)


def models(entries: Entries) -> Figure | None:
    """Programs and HBM traffic of the decoder's prefill, by target; None without figures."""
    targets = targets_of(entries, "models")
    pairs = [[figures(entries, "models", "prefill", row, one) for row in ("before", "after")] for one in targets]
    if not targets or any(entry is None for pair in pairs for entry in pair):
        return None
    figure, both = new(6.4, 3.2, "Demo decoder, prefill of 128 tokens", columns=2)
    panels = (("programs", 1, "programs", "{:,.0f}"), ("hbm_bytes", MIB, "HBM traffic, MiB", "{:,.1f}"))
    for axes, (name, unit, label, written) in zip(both, panels, strict=True):
        for form, color in enumerate((BEFORE, AFTER)):
            heights = [(value(pair[form], name) or 0) / unit for pair in pairs]
            at = [index + (form - 0.5) * 0.38 for index in range(len(targets))]
            title = ("without passes", "with passes")[form]
            drawn = axes.bar(at, heights, 0.36, color=color, label=title)
            axes.bar_label(drawn, [written.format(height) for height in heights], padding=2, fontsize=7)
        axes.set_xticks(range(len(targets)), targets)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel(label)
    both[1].legend(frameon=False, loc="upper center", bbox_to_anchor=(0.3, 1.16), ncols=2, fontsize=8)
    return figure


PLOTS: dict[str, Callable[[Entries], Figure | None]] = {
    "growth.png": growth,
    "kernels.png": kernels,
    "models.png": models,
}
"""By file name."""
