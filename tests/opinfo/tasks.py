"""What there is to run: entries of torch's databases, tasks, and what a task gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

DATABASES = ("op", "module", "optim")
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "bool": torch.bool,
    "complex64": torch.complex64,
}
COLUMNS = (*DTYPES, "float32 grad")


@dataclasses.dataclass(frozen=True)
class Task:
    """What to run.

    Attributes:
        database: "op", "module" or "optim".
        name: an entry's full name.
        dtype: a key of ``DTYPES``.
        grad: gradients too.
        samples: only so many, evenly spread; 0 for all.
        reference: run ``aot_eager`` on every sample, not only on those that fail.
    """

    database: str
    name: str
    dtype: str
    grad: bool = False
    samples: int = 0
    reference: bool = True

    @property
    def column(self) -> str:
        return f"{self.dtype} grad" if self.grad else self.dtype


@dataclasses.dataclass(frozen=True)
class Result:
    """What an entry did.

    Attributes:
        samples: the number that were run.
        random: how many of them differ from run to run in eager.
        counted: whether ``aot_eager`` passes every sample that was run.
        code: of the first failure, or "" if every sample passes.
        message: its first line.
        failing: numbers of samples that fail, and those of them that ``aot_eager`` fails too.
        reference: the first failure of ``aot_eager``.
        seconds: time taken.
    """

    database: str
    name: str
    column: str
    samples: int = 0
    random: int = 0
    counted: bool = True
    code: str = ""
    message: str = ""
    failing: tuple[int, ...] = ()
    reference_failing: tuple[int, ...] = ()
    reference: str = ""
    seconds: float = 0.0


def full_name(info: Any) -> str:
    """The name of an entry: unique, and what pytest shows."""
    return info.full_name if hasattr(info, "full_name") else info.formatted_name


def chosen_entries(database: str, names: Sequence[str] | None) -> dict[str, Any]:
    """The entries of a command line: those of these full names, or all.

    Raises:
        SystemExit: for a name that is none.
    """
    known = entries(database)
    for name in names or ():
        if name not in known:
            raise SystemExit(f"expected an entry of {database}_db, got {name!r}")
    return {name: info for name, info in known.items() if not names or name in names}


def entries(database: str) -> dict[str, Any]:
    """The entries of a database by full name."""
    if database == "optim":
        from torch.testing._internal.common_optimizers import optim_db

        return {info.optim_cls.__name__: info for info in optim_db}
    if database == "module":
        from torch.testing._internal.common_modules import module_db

        return {full_name(info): info for info in module_db}
    from torch.testing._internal.common_methods_invocations import op_db

    return {full_name(op): op for op in op_db}


def supports(info: Any, dtype: torch.dtype, grad: bool) -> bool:
    """Whether an entry has samples for a dtype, and gradients if they are wanted."""
    if hasattr(info, "optim_cls"):
        return dtype == torch.float32 and not grad
    if hasattr(info, "module_cls"):
        return dtype in info.supported_dtypes("cpu")
    return info.supports_dtype(dtype, "cpu") and (
        not grad or (info.supports_autograd and dtype in info.supported_backward_dtypes("cpu"))
    )
