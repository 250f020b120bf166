"""What XLA decides by itself is what ``Heuristics`` says: libtpu compiles a probe on either side of each number.

All for tpu7x, whose VMEM has 64 MiB. Every field has a probe here, or a reason why it has none.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.fuse.xla.probes import CHIP
from tpu_lowering.fuse.xla.heuristics import HEURISTICS, Heuristics
from tpu_lowering.ir import chips
from tpu_lowering.runtime.aot import compiler

pytest.importorskip("libtpu")

VMEM = chips.find(CHIP).vmem_bytes / 2**20

KEPT: dict[str, tuple[str, int, int]] = {
    "kept_scores": ("scores", 12, 20),  # heads of 2 MiB
    "kept_products": ("product", 8, 24),  # MiB
    "kept_rows": ("rows", 6, 48),  # MiB
    "long_row": ("row", HEURISTICS.long_row // 2, HEURISTICS.long_row),  # elements
}
"""Field: a family of probes, a size of which XLA moves arguments and results alone, and one of which it moves more."""

PASSES: dict[str, tuple[str, int]] = {"rotation_passes": ("rotation", 64)}
"""Field: a family of probes of rows, and how many MiB they have. XLA moves at least so many passes over them more."""

WITHOUT: dict[str, str] = {
    "release": "it says which libtpu the numbers were read from",
    "kernel_share": "a budget of ours: what a larger kernel costs depends on the program around it",
    "blocks_share": "a budget of ours: what temporaries a kernel gets depends on its body",
    "kept_scores_in_training": "JAX's gradient of an attention holds other values than AOTAutograd's: 12 MiB of scores do not stay",
    "kept_pages": "libtpu cannot print a program with a gather of pages, which runs on the SparseCore",
    "page_passes": "as kept_pages",
    "score_passes": "XLA keeps a part of scores that are little larger than its share, so bytes follow no whole number",
    "gradient_score_passes": "as score_passes",
    "running_sum_passes": "libtpu cannot print a program with JAX's running sum of short rows; one of long rows takes "
    "minutes to compile",
}
"""Field: why it has no probe."""


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """For each probe, the HBM bytes that XLA's program moves, and those of its arguments and results."""
    wanted: dict[str, list[int]] = {family: [small, large] for family, small, large in KEPT.values()}
    wanted |= {family: [0] for family, _ in PASSES.values()}
    path = tmp_path_factory.mktemp("probes") / "moved.json"
    command = [sys.executable, "-m", "tests.fuse.xla.probes", json.dumps(wanted), str(path)]
    root = pathlib.Path(__file__).parents[3]
    dump = {"XLA_FLAGS": f"--xla_dump_to={path.parent / 'dump'} --xla_dump_hlo_as_text"}
    environment = {**os.environ, **compiler.ENVIRONMENT, **dump}
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: (all_bytes, least) for name, (all_bytes, least) in json.loads(path.read_text()).items()}


def test_every_number_has_a_probe_or_a_reason() -> None:
    fields = sorted(field.name for field in dataclasses.fields(Heuristics))
    assert sorted([*KEPT, *PASSES, *WITHOUT]) == fields


@pytest.mark.sweep
@pytest.mark.parametrize("field", KEPT)
def test_xla_moves_no_more_below_a_threshold_and_more_above(field: str, moved: dict[str, tuple[int, int]]) -> None:
    family, small, large = KEPT[field]
    below, above = (moved[f"{family} {size}"] for size in (small, large))
    assert below[0] < 1.02 * below[1]
    assert above[0] > 1.25 * above[1]


@pytest.mark.parametrize(("field", "unit"), [("kept_scores", 2), ("kept_products", 1), ("kept_rows", 1)])
def test_probes_lie_on_either_side_of_a_share(field: str, unit: int) -> None:
    _, small, large = KEPT[field]
    assert small * unit <= getattr(HEURISTICS, field) * VMEM < large * unit


@pytest.mark.parametrize("field", PASSES)
def test_xla_goes_over_rows_again_that_are_computed_along(field: str, moved: dict[str, tuple[int, int]]) -> None:
    family, mebibytes = PASSES[field]
    total, least = moved[f"{family} 0"]
    assert total - least >= 0.99 * (getattr(HEURISTICS, field)) * mebibytes * 2**20
