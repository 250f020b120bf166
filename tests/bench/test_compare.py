"""``python -m bench compare``: what counts as worse, and how it reads."""

from __future__ import annotations

import json
import pathlib

import expecttest
import pytest

from bench import __main__ as command
from bench.compare import METRICS, compare
from tests.bench.made_up import entry, failure

A, B, C, D = (f"seed/exp/{row}/tpu7x" for row in "abcd")


class TestText(expecttest.TestCase):
    def test_lists_changes_then_what_only_one_side_has(self) -> None:
        before = {A: entry(1600, 2), B: entry(800), C: entry(800), "kernels/add/before/v5e": entry(1)}
        after = {A: entry(800), B: entry(900), C: failure(), D: entry(8)}
        self.assertExpectedInline(
            compare(before, after, 0.01).text(),
            """\
| task             | metric            |        before |       after | change | verdict |
|------------------|-------------------|--------------:|------------:|-------:|---------|
| seed/exp/a/tpu7x | hbm_bytes         | 1,677,721,600 | 838,860,800 | -50.0% | better  |
| seed/exp/a/tpu7x | peak_bytes        | 1,677,721,600 | 838,860,800 | -50.0% | better  |
| seed/exp/a/tpu7x | programs          |             2 |           1 | -50.0% | better  |
| seed/exp/a/tpu7x | device_operations |             2 |           1 | -50.0% | better  |
| seed/exp/b/tpu7x | hbm_bytes         |   838,860,800 | 943,718,400 | +12.5% | worse   |
| seed/exp/b/tpu7x | peak_bytes        |   838,860,800 | 943,718,400 | +12.5% | worse   |
| seed/exp/c/tpu7x | error             |             0 |           - |      - | worse   |
only before: kernels/add/before/v5e
only after: seed/exp/d/tpu7x
3 tasks compared: 3 figures worse, 4 better
""",
        )

    def test_says_so_when_nothing_changed(self) -> None:
        self.assertExpectedInline(
            compare({A: entry(8)}, {A: entry(8)}, 0.0).text(),
            """\
1 tasks compared: 0 figures worse, 0 better
""",
        )


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_counts(metric: str) -> None:
    more = {**entry(8), metric: 2 * entry(8)[metric]}
    found = compare({A: entry(8)}, {A: more}, 0.01)
    assert [(change.metric, change.is_worse) for change in found.changes] == [(metric, True)]
    assert compare({A: more}, {A: entry(8)}, 0.01).worse == 0


def test_growth_within_the_tolerance_is_no_change() -> None:
    assert compare({A: entry(1000)}, {A: entry(1009)}, 0.01).changes == ()
    assert compare({A: entry(1000)}, {A: entry(1011)}, 0.01).worse == 2  # traffic and peak


def test_a_task_that_fails_now_is_worse_and_one_that_did_is_better() -> None:
    assert compare({A: entry(8)}, {A: failure()}, 0.01).worse == 1
    mended = compare({A: failure()}, {A: entry(8)}, 0.01)
    assert (mended.worse, len(mended.changes)) == (0, 1)
    assert compare({A: failure()}, {A: failure()}, 0.01).changes == ()


def test_exit_code(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = tmp_path / "small.json", tmp_path / "large.json"
    small.write_text(json.dumps({A: entry(100)}))
    large.write_text(json.dumps({A: entry(104)}))
    assert command.main(["compare", str(small), str(large)]) == 1
    assert command.main(["compare", str(small), str(large), "--tolerance", "0.05"]) == 0
    assert command.main(["compare", str(large), str(small)]) == 0
    assert "worse" in capsys.readouterr().out


def test_refuses_what_is_not_results(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "other.json"
    for text in ("{", "[1]", '{"key": {"versions": {}}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="expected results of python -m bench"):
            command.main(["compare", str(path), str(path)])
