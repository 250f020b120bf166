"""What the TPU compiler refuses, as coded errors: which kernel, which limit, which number broke it."""

from __future__ import annotations

import re
from collections.abc import Callable

from tpu_lowering import errors
from tpu_lowering.codegen.source import Source
from tpu_lowering.ir.chips import Chip
from tpu_lowering.ir.kernels import Kernel


def kernel_in(message: str, source: Source) -> Kernel | None:
    """The kernel that a message names, or the only one there is."""
    named = [kernel for name, kernel in source.kernels.items() if name in message or kernel.name in message]
    if named:
        return max(named, key=lambda kernel: len(kernel.name))
    return next(iter(source.kernels.values())) if len(source.kernels) == 1 else None


_FATAL = re.compile(r"^F\d{4} \S+ +\d+ \S+:\d+\] ", re.MULTILINE)
"""What a line begins with that libtpu dies of: a date, a time, a thread and a line of its own source."""


def said_by_crash(stderr: str) -> str:
    """What a child that crashed wrote: from the line that it died of on, or else its last lines."""
    fatal = _FATAL.search(stderr)
    return stderr[-2000:].lstrip() if fatal is None else stderr[fatal.end() :][:2000]


def telling_line(message: str, kind: str) -> str:
    """The first line of a message; where it says nothing, the kind of the failure."""
    return next((line.strip() for line in message.splitlines() if line.strip()), kind)[:400]


def from_message(message: str, kind: str, source: Source, chip: Chip) -> errors.TpuLoweringError:
    """The refusal for an error of Pallas, Mosaic or libtpu."""
    if (own := _OWN.search(message)) is not None and own["opcode"] != "custom-call":
        return _operation_of_xla(own, chip)
    kernel = kernel_in(message, source)
    subject = kernel.name if kernel is not None else "the program"
    where = kernel.where if kernel is not None else ""
    for pattern, build in PATTERNS:
        found = re.search(pattern, message, re.IGNORECASE | re.DOTALL)
        if found:
            code, reason, remedy = build(found, chip)
            return errors.refuse(code, subject, reason, remedy, where)
    first = telling_line(message, kind)
    return errors.refuse(
        "TL604", subject, f"expected a program that the compiler for {chip.name} takes, got {kind}: {first}",
        "change the kernel, or its config, as the message says", where,
    )  # fmt: skip


def never_run(what: str, chip: Chip) -> errors.TpuLoweringError:
    """The refusal of a call of what was compiled ahead of time."""
    return errors.refuse(
        "TL104",
        f"{what} for {chip.name}",
        "expected something that runs, got a program that was compiled ahead of time, to be read, compared and saved",
        'run the function: torch.compile(fn, backend="helion_tpu")',
    )


def refuse_wide_operands(source: Source, chip: Chip) -> None:
    """Refuses operands of 64 bits: Mosaic has no such registers, and says so without naming the argument.

    Raises:
        TpuLoweringError: TL603.
    """
    for kernel in source.kernels.values():
        for operand in kernel.operands:
            if operand.type.element.is_64bit:
                raise errors.refuse(
                    "TL603",
                    f"argument '{operand.name}' of {kernel.name}",
                    f"expected element types of at most 32 bits on {chip.name}, got {operand.type}",
                    "convert it before the kernel: x.float() for float64, x.int() for int64",
                    kernel.where,
                )


_OWN = re.compile(
    r"on stack for %\S+ = .*? (?P<opcode>[\w-]+)\(%.*?"
    r"Scoped allocation with size (?P<used>[\d.]+\w*) and limit (?P<limit>[\d.]+\w*) exceeded",
    re.DOTALL,
)
"""What libtpu says of an operation that needs more VMEM than it was given: XLA's own, or a kernel's custom call."""


def _operation_of_xla(found: re.Match[str], chip: Chip) -> errors.TpuLoweringError:
    """The refusal of an operation that XLA itself makes; no kernel of the user's is to blame."""
    line = re.search(r"[\w.]+\.py:\d+", found[0])
    return errors.refuse(
        "TL601", f"an operation of XLA ({found['opcode']})",
        f"expected at most {found['limit']} of VMEM, which is what XLA gives an operation on {chip.name}, got "
        f"{found['used']}",
        "give operations more of it: LIBTPU_INIT_ARGS=--xla_tpu_scoped_vmem_limit_kib=65536 in the environment, before "
        "Python starts",
        "" if line is None else line[0],
    )  # fmt: skip


Parts = tuple[str, str, str]


def _vmem(found: re.Match[str], chip: Chip) -> Parts:
    used, limit = _size(found["used"]), _size(found["limit"])
    return (
        "TL601",
        f"expected at most {limit} of VMEM on {chip.name}, got {used}",
        "choose smaller block sizes, or fewer or narrower operands in one block",
    )


def _size(text: str) -> str:
    """A size as the compiler writes it, bare bytes in MiB."""
    return f"{int(text) / (1 << 20):.1f} MiB" if text.isdigit() else text


def _block(found: re.Match[str], chip: Chip) -> Parts:
    got = found["got"].strip()[:200]
    return (
        "TL602",
        f"expected blocks whose last two dimensions are multiples of 8 and 128, or whole, got {got}",
        "choose block sizes that are multiples of 8 (rows) and 128 (columns), or take whole dimensions",
    )


PATTERNS: tuple[tuple[str, Callable[[re.Match[str], Chip], Parts]], ...] = (
    (r"memory space vmem.*?(?:Used|Estimated) (?P<used>[\d.]+ ?\w*) (?:of|exceeds) (?P<limit>[\d.]+ ?\w*)", _vmem),
    (r"Allocation \(size=(?P<used>\d+)\) would exceed memory \(size=(?P<limit>\d+)\).*?space=vmem", _vmem),
    (r"Scoped allocation with size (?P<used>[\d.]+\w*) and limit (?P<limit>[\d.]+\w*) exceeded", _vmem),
    (
        r"last two dimensions of your block shape.*?"
        r"(?P<got>Block spec for.*?block shape.*?)(?:,?(?: and)? index_map|$)",
        _block,
    ),
    (r"(?P<got>block shape[^\n]*)\n?.*?divisible by", _block),
)
