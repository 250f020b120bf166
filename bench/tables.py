"""``tables.md``: what the results say, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bench import TARGETS, fusion_cycles
from bench.against_tables import opinfo_section, suite_section
from bench.markdown import NONE, mib, microseconds, ratio, table, whole
from bench.store import Entry
from tpu_lowering.fuse.choose.choices import Score

Entries = Mapping[str, Entry]

UNSCHEDULED = 0.01  # the most of a program's bytes that operations without a schedule move, if its cycles are stated
SEED_ROWS = {
    "torch.exp": "torch.exp, our backend",
    "before": "Helion kernel(x, out), without passes",
    "after": "Helion kernel(x, out), with passes",
    "jax.numpy.exp": "jax.numpy.exp",
    "pallas": "Pallas, by hand",
}

HEADER = """# What the TPU compiler says

Everything here is read off programs as libtpu compiles them on a machine without a TPU: **nothing was measured on
a TPU**. `python -m bench` writes this file; `results.json` beside it has every figure.

- *without passes*: the function as its author wrote it, cut into programs by torch_tpu's rule for aliased kernel
  operands; programs run one after the other, their figures are added up, and the peak is that of the largest by
  itself: what other programs hold at the time, such as their weights, is not in it.
  *with passes*: the one program of `torch.compile(fn, backend="helion_tpu")`.
- *HBM MiB*: bytes read and written. Of a kernel they are the copies in the compiler's DMA schedule; of any other
  operation its operands and results as they lie in HBM, padding to tiles included, each once, or the slices it takes
  of them.
- *device ops*: operations of the compiled programs that move bytes.
- *at least, us*: HBM bytes over the bandwidth of one device, the time that no run can beat: from
  JAX's table of TPUs, in GB/s: {bandwidths}.
- *cycles*: the compiler's simulated static schedule of the kernels; it knows no contention for HBM.
"""


def bandwidths() -> str:
    """HBM bandwidth of one device of each target, GB/s."""
    from tpu_lowering.ir import chips

    return ", ".join(f"{name} {chips.find(name).hbm_bytes_per_second / 1e9:,.0f}" for name in TARGETS)


def document(entries: Entries) -> str:
    """All tables of the groups that have entries."""
    sections: Sequence[tuple[str, Callable[[Entries], str]]] = (
        ("seed", seed_section),
        ("growth", growth_section),
        ("kernels", kernel_section),
        ("models", model_section),
        ("fusion", fusion_section),
        ("opinfo", opinfo_section),
        ("suite", suite_section),
    )
    parts = [HEADER.format(bandwidths=bandwidths()), version_line(entries)]
    parts += [build(entries) for group, build in sections if any(key.startswith(f"{group}/") for key in entries)]
    parts.append(failure_section(entries))
    return "\n".join(part for part in parts if part)


def version_line(entries: Entries) -> str:
    """The versions behind the results; several where results are from several runs."""
    found = sorted({", ".join(f"{k} {v}" for k, v in entry["versions"].items()) for entry in entries.values()})
    return "".join(f"Versions: {line}.\n" for line in found)


def figures(entries: Entries, *key: str) -> Entry | None:
    """The figures under a key; None if the task failed or never ran."""
    entry = entries.get("/".join(key))
    return None if entry is None or "error" in entry else entry


def value(entry: Entry | None, name: str) -> int | None:
    return None if entry is None else entry[name]


def schedule_cycles(entry: Entry | None) -> int | None:
    """Cycles of the static schedule; None if operations that move a share of the bytes worth speaking of have none."""
    if entry is None or not entry["schedule_cycles"]:
        return None
    return entry["schedule_cycles"] if entry["unscheduled_bytes"] <= UNSCHEDULED * entry["hbm_bytes"] else None


def operations(entry: Entry) -> str:
    """The opcodes of a small program; of a large one, how many of each kind there are."""
    short = [
        code.replace("custom-call:tpu_custom_call", "kernel").removeprefix("custom-call:") for code in entry["opcodes"]
    ]
    if len(short) <= 3:
        return ", ".join(short)
    return ", ".join(f"{short.count(code)} {code}" for code in sorted(set(short)))


def targets_of(entries: Entries, group: str) -> list[str]:
    """The targets that a group has entries for, in our order."""
    present = {key.split("/")[3] for key in entries if key.startswith(f"{group}/")}
    return [target for target in TARGETS if target in present]


def seed_section(entries: Entries) -> str:
    rows = []
    for target in targets_of(entries, "seed"):
        for row, title in SEED_ROWS.items():
            entry = figures(entries, "seed", "exp", row, target)
            if entry is not None:
                rows.append((
                    target, title, whole(entry["programs"]), whole(entry["device_operations"]), operations(entry),
                    mib(entry["hbm_bytes"]), mib(entry["hbm_bytes_read"]), mib(entry["hbm_bytes_written"]),
                    mib(entry["peak_bytes"]), microseconds(entry["bandwidth_bound_seconds"]),
                    whole(entry["kernel_cycles"] or None),
                ))  # fmt: skip
    headers = (
        "target", "form", "programs", "device ops", "which", "HBM MiB", "read", "written", "peak MiB", "at least, us",
        "cycles",
    )  # fmt: skip
    title = "## exp of 104,857,600 float32 elements: 400 MiB in, 400 MiB out\n\n"
    return title + table(headers, rows)


def growth_section(entries: Entries) -> str:
    names = {key.split("/")[1] for key in entries if key.startswith("growth/")}
    rows = []
    for name in sorted(names, key=lambda name: int(name.split()[0])):
        before, after = (figures(entries, "growth", name, row, "tpu7x") for row in ("before", "after"))
        rows.append((
            name.split()[0], mib(value(before, "hbm_bytes")), mib(value(after, "hbm_bytes")),
            ratio(value(before, "hbm_bytes"), value(after, "hbm_bytes")),
            whole(value(before, "programs")), whole(value(after, "programs")),
            microseconds(value(before, "bandwidth_bound_seconds")),
            microseconds(value(after, "bandwidth_bound_seconds")),
        ))  # fmt: skip
    headers = (
        "output MiB", "HBM MiB without", "with", "without/with", "programs without", "with",
        "at least, us without", "with",
    )  # fmt: skip
    return "## exp by the size of its output, tpu7x, without and with passes\n\n" + table(headers, rows)


def traffic(rows: Sequence[Entry | None]) -> tuple[list[int | None], str]:
    """HBM bytes of forms of one kernel from one source, so that they compare: the DMA schedule, or operands.

    The schedule of a kernel with a pipeline inside a grid step counts the pipeline once. If one form has no
    complete schedule, all forms are read by operands and results, a lower bound for every one of them.
    """
    partial = any(entry is not None and entry["kernels_by_operands"] for entry in rows)
    name = "operand_bytes" if partial else "hbm_bytes"
    return [value(entry, name) for entry in rows], "operands" if partial else "DMA"


def kernel_row(entries: Entries, name: str, target: str) -> tuple[str, ...]:
    """One kernel: its HBM bytes in three forms, and what they come to."""
    forms = [figures(entries, "kernels", name, row, target) for row in ("before", "after", "direct")]
    (before, after, direct), source = traffic(forms)
    cycles = [value(entry, "kernel_cycles") for entry in forms]
    return (
        target, name, mib(before), mib(after), mib(direct), ratio(before, after), ratio(after, direct), source,
        mib(forms[2].get("block_bytes") if forms[2] else None),
        whole(value(forms[0], "programs")), whole(value(forms[1], "programs")),
        *(mib(value(form, "peak_bytes")) for form in forms),
        *(whole(count) for count in cycles), ratio(cycles[1], cycles[2]) if source == "DMA" else NONE,
    )  # fmt: skip


def kernel_names(entries: Entries) -> list[str]:
    """The kernels that have entries, in the order of the table of kernels."""
    from bench.kernels import KERNELS

    present = {key.split("/")[1] for key in entries if key.startswith("kernels/")}
    return [case.name for case in KERNELS if case.name in present]


def kernel_section(entries: Entries) -> str:
    rows = [
        kernel_row(entries, name, target) for target in targets_of(entries, "kernels") for name in kernel_names(entries)
    ]
    headers = (
        "target", "kernel", "HBM MiB before", "after", "direct", "before/after", "after/direct", "from", "by blocks",
        "programs before", "after", "peak MiB before", "after", "direct", "cycles before", "after", "direct",
        "after/direct",
    )  # fmt: skip
    notes = {key.split("/")[1]: entry["note"] for key, entry in sorted(entries.items()) if key.startswith("kernels/")}
    lines = "".join(f"- {name}: {notes[name]}.\n" for name in kernel_names(entries))
    return f"""## Kernels: without passes, with passes, and written by hand for Pallas

*from operands*: a form of this kernel has no complete DMA schedule, because a pipeline inside a grid step is counted
once; all three are then read by operands and results, each once: a lower bound, and cycles do not compare. *by
blocks* is what the form written by hand moves, computed from its grid and block specs, repeated fetches included.

{table(headers, rows)}
{lines}"""


def model_section(entries: Entries) -> str:
    return prefill_table(entries) + "\n" + decode_table(entries)


def prefill_table(entries: Entries) -> str:
    rows = []
    for target in targets_of(entries, "models"):
        before, after = (figures(entries, "models", "prefill", row, target) for row in ("before", "after"))
        cells = [target]
        for name, written in (
            ("programs", whole),
            ("device_operations", whole),
            ("hbm_bytes", mib),
            ("peak_bytes", mib),
        ):
            cells += [written(value(before, name)), written(value(after, name))]
        rows.append((*cells, ratio(value(before, "hbm_bytes"), value(after, "hbm_bytes"))))
    headers = (
        "target", "programs without", "with", "device ops without", "with", "HBM MiB without", "with",
        "peak MiB without", "with", "HBM without/with",
    )  # fmt: skip
    title = "## The demo decoder with Helion kernels, prefill of 128 tokens, without and with passes\n\n"
    return title + table(headers, rows)


def decode_table(entries: Entries) -> str:
    rows = []
    note = ""
    for target in targets_of(entries, "models"):
        for row in ("donated", "not donated"):
            entry = figures(entries, "models", "decode step", row, target)
            if entry is not None:
                note = entry["note"]
                rows.append((
                    target, row, whole(entry["programs"]), whole(entry["device_operations"]),
                    whole(entry["cache_copies"]), mib(entry["hbm_bytes"]), mib(entry["peak_bytes"]),
                ))  # fmt: skip
    headers = ("target", "caches", "programs", "device ops", "copies of a cache", "HBM MiB", "peak MiB")
    title = f"## One decode step that updates its caches in place: {note or NONE}\n\n"
    return title + table(headers, rows)


def failure_section(entries: Entries) -> str:
    failed = [(key, entry["error"]) for key, entry in sorted(entries.items()) if "error" in entry]
    if not failed:
        return ""
    lines = (f"- {key}: {error['code']}: {error['text'].splitlines()[0][:200]}\n" for key, error in failed)
    return "## Failed\n\n" + "".join(lines)


def fusion_section(entries: Entries) -> str:
    """XLA alone against generated kernels."""
    names = list(dict.fromkeys(key.split("/")[1] for key in entries if key.startswith("fusion/")))
    rows: list[tuple[str, ...]] = []
    exceptions = ""
    for target in targets_of(entries, "fusion"):
        for name in names:
            alone, fused = (figures(entries, "fusion", name, row, target) for row in ("xla", "fused"))
            (before, after), source = traffic((alone, fused))
            least = value(fused, "least_bytes")
            cycles = [schedule_cycles(entry) for entry in (alone, fused)]
            goal = fused.get("goal") if fused else None
            forms = Score(before or 0, cycles[0]), Score(after or 0, cycles[1])
            exceptions += fusion_cycles.exception(target, name, *forms)
            rows.append((
                target, name, mib(before), mib(after), mib(least), ratio(after, before), str(goal or NONE),
                ratio(after, least), source, whole(cycles[0]), whole(cycles[1]), ratio(cycles[1], cycles[0]),
            ))  # fmt: skip
    headers = (
        "target", "case", "HBM MiB by XLA", "with kernels", "least", "kernels/XLA", "asked for", "kernels/least",
        "from", "cycles by XLA", "with kernels", "kernels/XLA",
    )  # fmt: skip
    notes = {key.split("/")[1]: entry["note"] for key, entry in entries.items() if key.startswith("fusion/")}
    lines = "".join(f"- {name}: {notes[name]}.\n" for name in names)
    return f"""## Fusion: XLA alone, and with generated kernels

*least*: each input read once and each result written once. *cycles* are of all operations, one after the other;
"-" where operations that move more than {UNSCHEDULED:.0%} of the bytes state none.

{table(headers, rows)}
{lines}
Kernels that take more than {fusion_cycles.ALLOWED:.2f} of XLA's cycles, and what that comes to in time. They round
between operators as eager does, where XLA keeps float32, and read rows once, where XLA's passes wait for HBM:

{exceptions or NONE}"""
