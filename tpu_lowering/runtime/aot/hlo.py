"""Optimised HLO text, read as far as a report needs it: the entry computation's operations and their buffers."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0,
    "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3": 8, "f4e2m1fn": 4, "f8e8m0fnu": 8,
}  # fmt: skip

# Entry operations that move no bytes: they name, group or forward buffers.
FREE = frozenset((
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "partition-id", "opt-barrier",
    "copy-done", "async-done", "slice-done", "dynamic-slice-done", "add-dependency",
))  # fmt: skip

# They read what they take out of their operand, and no more.
SLICES = frozenset(("slice", "dynamic-slice", "slice-start", "dynamic-slice-start", "gather"))
ASYNCHRONOUS = ("slice", "dynamic-slice", "copy")
"""Operations whose asynchronous start has a name of its own."""

KERNEL = "custom-call:tpu_custom_call"

# Custom calls of the compiler's own that move no bytes.
FREE_CALLS = frozenset(("custom-call:AllocateBuffer", "custom-call:ConcatBitcast"))

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", re.DOTALL)
_COMPUTATION = re.compile(r"^%?([\w.\-]+) \([^\n]*\{$", re.MULTILINE)
_CALLED = re.compile(r"(?:calls=|to_apply=|called_computations=\{)%?([\w.\-]+)")
_PARENTHESIS = re.compile(r"[()]")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\n]', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an HLO type.

    Attributes:
        element: HLO's name of the element type.
        shape: dimensions, unpadded.
        memory_space: 0 for HBM; 1 is VMEM, others are other memories of the chip.
        placed: the same in memory, padded to tiles of two dimensions; () if it is not.
    """

    element: str
    shape: tuple[int, ...]
    memory_space: int
    placed: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, without padding to tiles."""
        return math.prod(self.shape) * BITS.get(self.element, 0) // 8

    @property
    def hbm_bytes(self) -> int:
        """Bytes that it takes of HBM, as the kernels' DMA schedules count them: with padding to tiles."""
        placed = self.placed or self.shape
        return math.prod(placed) * BITS.get(self.element, 0) // 8 if self.memory_space == 0 else 0


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: its name in the optimised program.
        opcode: HLO opcode; for a custom call, ``custom-call:`` and its target; for a fusion that holds a kernel, that
            of the kernel.
        results: the arrays it makes.
        operands: names of the operations it takes.
        op_name: where it comes from, as JAX's name scopes say it.
        aliased: for each aliased result, the operand position whose buffer it is written into.
        vmem_bytes: scoped VMEM that it uses, as the compiler states it.
        estimated_cycles: cycles of its static schedule, if the compiler states them in the text.
        calls: name of the computation that a fusion runs, or "".
        called: names of all computations that it runs.
        parameter: which argument of its computation it is, or None.
        details: its attributes as text, up to the metadata; of a constant, its value.
        aliasing: for each aliased result, in the order of ``aliased``, its position; 0 for one that is no tuple.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    op_name: str
    aliased: tuple[int, ...]
    vmem_bytes: int
    estimated_cycles: int | None
    calls: str = ""
    called: tuple[str, ...] = ()
    parameter: int | None = None
    details: str = ""
    aliasing: tuple[int, ...] = ()

    @property
    def is_kernel(self) -> bool:
        """Whether it is a Mosaic (Pallas) kernel."""
        return self.opcode == KERNEL

    @property
    def moves_bytes(self) -> bool:
        without_work = self.opcode == "async-start" and not self.operands  # an async-update brings it
        return self.opcode not in FREE | FREE_CALLS and not without_work

    @property
    def written(self) -> tuple[Array, ...]:
        """The arrays that it writes: its results, without the operands that an asynchronous start lists too."""
        if self.opcode == "copy-start":
            return self.results[:1]
        if self.opcode.endswith("-start") and len(self.results) > len(self.operands):
            return self.results[len(self.operands) : len(self.operands) + 1]
        return self.results


@dataclasses.dataclass(frozen=True)
class Module:
    """A program, read once.

    Attributes:
        entry: the operations of the entry computation, in the order of the schedule.
        computations: those of each other computation by its name, the root last.
    """

    entry: tuple[Operation, ...]
    computations: Mapping[str, tuple[Operation, ...]]

    @staticmethod
    def of(text: str) -> Module:
        """Reads optimised HLO text.

        Raises:
            ValueError: the text has no entry computation.
        """
        start = text.find("\nENTRY ")
        if start < 0:
            raise ValueError("expected an HLO module with an ENTRY computation, got none")
        computations: dict[str, tuple[Operation, ...]] = {}
        for header in _COMPUTATION.finditer(text):
            if header[1] not in computations:
                computations[header[1]] = _root_last(_operations(text, header.end() - 1))
        found = [operation for operation, _ in _operations(text, text.index("{\n", start))]
        computations = {
            name: tuple(_named_start(one, computations) for one in inside) for name, inside in computations.items()
        }
        found = [_named_start(one, computations) for one in found]
        entry = [dataclasses.replace(one, opcode=KERNEL) if _holds_kernel(one, computations) else one for one in found]
        return Module(tuple(entry), computations)

    def called(self, name: str) -> tuple[str, ...]:
        """A computation's name and those of all that it calls."""
        found: dict[str, None] = {}
        pending = [name]
        while pending:
            current = pending.pop()
            if current in self.computations and current not in found:
                found[current] = None
                pending += [other for operation in self.computations[current] for other in operation.called]
        return tuple(found)


def _operations(text: str, start: int) -> list[tuple[Operation, bool]]:
    """The operations of the computation whose body opens at ``start``, and whether each is its root."""
    matches = (_LINE.match(line) for line in _instructions(text, start))
    return [(_operation(match[1], match[2]), match[0].lstrip().startswith("ROOT ")) for match in matches if match]


def _root_last(operations: list[tuple[Operation, bool]]) -> tuple[Operation, ...]:
    return tuple(operation for operation, _ in sorted(operations, key=lambda pair: pair[1]))


def _holds_kernel(operation: Operation, computations: Mapping[str, tuple[Operation, ...]]) -> bool:
    """Whether an operation is a fusion of a kernel with what makes its operands."""
    inside = computations.get(operation.calls, ())
    return operation.opcode == "fusion" and any(inner.is_kernel for inner in inside)


def _named_start(operation: Operation, computations: Mapping[str, tuple[Operation, ...]]) -> Operation:
    """An asynchronous start of a slice or copy as ``slice-start``: XLA's dumps spell it ``async-start``, with the slice
    in a computation."""
    inside = [one for one in computations.get(operation.calls, ()) if one.parameter is None]
    if operation.opcode != "async-start" or len(inside) != 1 or inside[0].opcode not in ASYNCHRONOUS:
        return operation
    return dataclasses.replace(operation, opcode=f"{inside[0].opcode}-start", calls="", called=())


def _instructions(text: str, start: int) -> list[str]:
    """The instructions of the computation whose body opens at ``start``, a line each: line breaks inside an
    instruction, in its attributes, are part of it."""
    found: list[str] = []
    depth, begin = 0, start + 1
    for token in _TOKEN.finditer(text, start):
        if token[0] == "\n" and depth == 1:
            found.append(text[begin : token.start()])
            begin = token.end()
        elif token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
            if depth == 0:
                break
    return found


def _operation(name: str, rest: str) -> Operation:
    type_text, rest = _split_type(rest)
    opcode, _, tail = rest.partition("(")
    arguments, attributes = _split_parenthesis(tail)
    target = re.search(r'custom_call_target="([^"]+)"', attributes)
    opcode = opcode.strip()
    aliasing = re.search(r"output_to_operand_aliasing=\{(.*?)\}(?:,|$| )", attributes)
    cycles = re.search(r'"bundle_analysis_data":\{"estimated_cycles":"(\d+)"', attributes)
    op_name = re.search(r'op_name="([^"]*)"', attributes)
    called = _CALLED.findall(attributes)
    number = int(arguments) if opcode == "parameter" and arguments.isdecimal() else None
    pairs = re.findall(r"\{([\d, ]*)\}: \((\d+), \{", aliasing[1] if aliasing else "")
    vmem = re.findall(r'"memory_space":"1","offset":"\d+","size":"(\d+)"', attributes)
    return Operation(
        name=name,
        opcode=f"custom-call:{target[1]}" if target and opcode == "custom-call" else opcode,
        results=arrays(type_text),
        operands=tuple(re.findall(r"%([\w.\-]+)", arguments)),
        op_name=op_name[1] if op_name else "",
        aliased=tuple(int(position) for _, position in pairs),
        aliasing=tuple(int(place.split(",")[0] or 0) for place, _ in pairs),
        vmem_bytes=max(map(int, vmem), default=0),
        estimated_cycles=int(cycles[1]) if cycles else None,
        calls=calls[1] if (calls := re.search(r"calls=%?([\w.\-]+)", attributes)) else "",
        called=tuple(called),
        parameter=number,
        details=arguments
        if opcode == "constant"
        else attributes.partition(", metadata=")[0].partition(", backend_")[0],
    )


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of an HLO type: one, or those of a tuple, nested ones flattened."""
    found: list[Array] = []
    for element, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout or "")
        shape = tuple(int(dim) for dim in dims.split(",") if dim)
        found.append(Array(element, shape, int(space[1]) if space else 0, _placed(shape, layout or "")))
    return tuple(found)


def entry_types(text: str) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """What a program takes and what it gives, each as it lies in memory; () and () where the text does not say."""
    _, said, rest = text.partition("\n")[0].partition("entry_computation_layout={(")
    if not said:
        return (), ()
    arguments, rest = _split_parenthesis(rest)
    given, _ = _split_type(rest.removeprefix("->"))
    return arrays(arguments), arrays(given)


def _placed(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """A shape, padded as a layout such as "1,0:T(8,128)(2,1)" says; () if that pads nothing."""
    order, tile = re.match(r"[\d,]*", layout), re.search(r":T\((\d+),(\d+)\)", layout)
    if tile is None or order is None:
        return ()
    last, above = [int(dim) for dim in order[0].split(",")][:2]
    sizes = {last: int(tile[2]), above: int(tile[1])}
    placed = tuple(-(-size // sizes.get(dim, 1)) * sizes.get(dim, 1) for dim, size in enumerate(shape))
    return () if placed == shape else placed


def _split_type(text: str) -> tuple[str, str]:
    """The type at the start of an instruction, and the rest."""
    if text.startswith("("):
        inside, rest = _split_parenthesis(text[1:])
        return inside, rest.lstrip()
    type_text, _, rest = text.partition(" ")
    return type_text, rest


def _split_parenthesis(text: str) -> tuple[str, str]:
    """What stands before the parenthesis that closes an open one, and what stands after it."""
    depth = 1
    for match in _PARENTHESIS.finditer(text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[: match.start()], text[match.end() :]
    return text, ""
