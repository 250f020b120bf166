"""The lowering table, filled: importing this module imports every family of operators."""

from __future__ import annotations

from tpu_lowering.lower import aten as aten_families
from tpu_lowering.lower.table import DRAWS, RULES, TABLE

FAMILIES: tuple[str, ...] = tuple(aten_families.__all__)

__all__ = ["DRAWS", "FAMILIES", "RULES", "TABLE"]
