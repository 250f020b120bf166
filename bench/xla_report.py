"""The comparison on torch_xla's tensors as a document; it needs no torch_xla."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from bench.markdown import NONE, ratio, table

WAYS = ("helion_tpu", "torch_xla", "openxla")
"""Ours; eager torch_xla, operator by operator; torch_xla's own ``torch.compile`` backend."""

HEADERS = (
    "model", "way", "compilations", "later", "executions a call", "transfers a call", "first call, s", "ms a call",
    "fastest", "slowest", "over ours", "largest difference",
)  # fmt: skip


def row(name: str, way: str, entries: Mapping[str, Any]) -> list[str]:
    """The cells of one model, one way."""
    entry, ours = entries[f"{name}/{way}"], entries[f"{name}/{WAYS[0]}"]
    if "error" in entry:
        return [name, way, *[NONE] * (len(HEADERS) - 3), entry["error"]]
    samples = entry["samples"]
    # Ratios within rounds: what loads the machine loads all ways of a round alike.
    pairs = zip(samples, ours.get("samples", ()), strict=False)
    over = statistics.median([theirs / mine for theirs, mine in pairs] or [0.0])
    return [
        name, way, f"{entry['compilations']}", f"{entry['later']}", f"{entry['executions']:g}",
        f"{entry['transfers']:g}", f"{entry['first']:.2f}", f"{statistics.median(samples) * 1e3:.2f}",
        f"{min(samples) * 1e3:.2f}", f"{max(samples) * 1e3:.2f}", ratio(over or None, 1.0),
        f"{entry['difference']:.1e}",
    ]  # fmt: skip


def document(entries: Mapping[str, Any]) -> str:
    """The whole of ``xla.md``."""
    names = list(dict.fromkeys(key.partition("/")[0] for key in entries))
    rows = [row(name, way, entries) for name in names for way in WAYS if f"{name}/{way}" in entries]
    some = next(iter(entries.values()))
    packages = ", ".join(f"{name} {version}" for name, version in some["versions"].items() if version)
    loads = [entry["load"] for entry in entries.values()]
    return f"""# Kernels in destination-passing style on torch_xla's tensors

`make bench-xla`, on torch_xla's CPU. helion_tpu: the graph as one HLO computation. torch_xla: eager, operator by
operator. openxla: torch_xla's own `torch.compile` backend. Every call ends at a step boundary (`torch_xla.sync()`), and
is over when the device is idle. Executions, compilations and transfers between host and device are torch_xla's own
counters: compilations in the first call, then in all later ones. After a first call each way gives one sample in each
of {some["rounds"]} rounds, in an order drawn anew; times are medians, and "over ours" is the median of the ratios
within rounds. "Largest difference" is that of the last result from eager torch on the CPU.

{some["cores"]} cores, load {min(loads):.1f} to {max(loads):.1f} during the run, {packages}

{table(HEADERS, rows)}"""
