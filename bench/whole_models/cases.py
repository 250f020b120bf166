"""All cases, in the order of the tables."""

from __future__ import annotations

from bench.whole_models import bert, llama, mixtral, resnet
from bench.whole_models.case import Case

CASES: dict[str, Case] = {case.name: case for module in (llama, mixtral, bert, resnet) for case in module.CASES}
