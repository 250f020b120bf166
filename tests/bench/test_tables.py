"""Tables and plots of made-up results."""

from __future__ import annotations

import pathlib

import expecttest

from bench import markdown, plots, tables
from bench.fusion_cycles import exception
from bench.report import write
from bench.store import Store
from tests.bench.made_up import MIB, entry, failure
from tpu_lowering.fuse.choose.choices import Score
from tpu_lowering.ir import chips


def results() -> dict[str, dict]:
    """One of everything that tables and plots ask for."""
    found = {f"seed/exp/{row}/tpu7x": entry(800) for row in tables.SEED_ROWS}
    found["seed/exp/before/tpu7x"] = entry(1600, 2)
    for size in (4, 400):
        found[f"growth/{size} MiB/before/tpu7x"] = entry(4 * size, 2)
        found[f"growth/{size} MiB/after/tpu7x"] = entry(2 * size)
    for row, count in (("before", 1024), ("after", 512), ("direct", 768)):
        found[f"kernels/add/{row}/tpu7x"] = entry(count)
        found[f"models/prefill/{row}/v5e"] = entry(count)
    for row, copies in (("donated", 0), ("not donated", 4)):
        found[f"models/decode step/{row}/v5e"] = entry(100, cache_copies=copies)
    return found


class TestMarkdown(expecttest.TestCase):
    def test_numbers_stand_at_the_right(self) -> None:
        rows = [("exp", "1,600", "-"), ("softmax", "8", "+3.0%")]
        self.assertExpectedInline(
            markdown.table(("kernel", "MiB", "change"), rows),
            """\
| kernel  |   MiB | change |
|---------|------:|-------:|
| exp     | 1,600 |      - |
| softmax |     8 |  +3.0% |
""",
        )


def cells(text: str, *start: str) -> list[str]:
    """The row of a table that begins with these cells."""
    rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines())
    return next(row for row in rows if tuple(row[: len(start)]) == start)


def test_seed_says_what_each_form_costs() -> None:
    text = tables.seed_section(results())
    before = cells(text, "tpu7x", tables.SEED_ROWS["before"])
    assert before[2:] == ["2", "2", "broadcast, kernel", "1,600", "800", "800", "1,600", "1,677.7", "1,000"]
    assert cells(text, "tpu7x", tables.SEED_ROWS["after"])[2:6] == ["1", "1", "kernel", "800"]


def test_mib_has_the_digits_that_matter() -> None:
    written = [markdown.mib(int(value * MIB)) for value in (1600, 100.4, 12.34, 1.234, 8)]
    assert written == ["1,600", "100", "12.3", "1.23", "8"]
    assert markdown.mib(None) == "-"


def test_forms_of_a_kernel_are_compared_by_one_source() -> None:
    whole, partial = entry(1280, operand_bytes=512 * MIB), entry(512, kernels_by_operands=1)
    assert tables.traffic([whole, whole, whole]) == ([1280 * MIB] * 3, "DMA")
    assert tables.traffic([whole, partial, None]) == ([512 * MIB, 512 * MIB, None], "operands")


def test_a_failed_task_leaves_a_gap_and_is_listed() -> None:
    entries = {**results(), "kernels/add/direct/tpu7x": failure()}
    text = tables.document(entries)
    assert "- kernels/add/direct/tpu7x: TL601: [TL601] too much VMEM\n" in text
    assert cells(text, "tpu7x", "add")[2:7] == ["1,024", "512", "-", "2.00", "-"]


def test_large_programs_are_counted_by_opcode() -> None:
    codes = ["fusion", "copy", "fusion", "custom-call:tpu_custom_call", "custom-call:Sort"]
    assert tables.operations(entry(1, opcodes=codes)) == "1 Sort, 1 copy, 2 fusion, 1 kernel"
    assert tables.operations(entry(1, opcodes=codes[2:4])) == "fusion, kernel"


def test_report_has_tables_and_small_plots(tmp_path: pathlib.Path) -> None:
    store = Store(tmp_path / "results.json")
    store.entries = results()
    write(store, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tables.md", *plots.PLOTS}
    for name in plots.PLOTS:
        assert 5_000 < (tmp_path / name).stat().st_size < 200_000


def test_plots_without_figures_are_not_drawn() -> None:
    assert [draw({}) for draw in plots.PLOTS.values()] == [None] * len(plots.PLOTS)
    assert plots.growth({"growth/4 MiB/before/tpu7x": failure()}) is None


def test_cycles_are_stated_if_the_rest_moves_next_to_nothing() -> None:
    assert tables.schedule_cycles(entry(100, schedule_cycles=7, unscheduled_bytes=MIB)) == 7
    assert tables.schedule_cycles(entry(100, schedule_cycles=7, unscheduled_bytes=2 * MIB)) is None
    assert tables.schedule_cycles(entry(100)) is None
    assert tables.schedule_cycles(None) is None


def test_kernels_of_more_cycles_are_listed_with_what_they_come_to() -> None:
    """A second is the larger of bytes over bandwidth and cycles over clock."""
    chip = chips.find("v6e")
    alone = Score(int(chip.hbm_bytes_per_second), int(0.5 * chip.cycles_per_second))
    fused = Score(int(0.3 * chip.hbm_bytes_per_second), int(0.6 * chip.cycles_per_second))
    assert exception("v6e", "rows", alone, fused) == (
        "- v6e, rows: 1.20 of the cycles, less time all the same: at least 600,000.0 us by its cycles, "
        "XLA's form 1,000,000.0 us by its bytes.\n"
    )
    assert "no less time" in exception("v6e", "rows", Score(0, fused.cycles // 2), fused)
    assert not exception("v6e", "rows", alone, Score(alone.hbm_bytes, int(1.09 * alone.cycles)))
