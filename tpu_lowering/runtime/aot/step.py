"""``TpuStep``: a forward and its backward, compiled for a TPU, and what is saved between the two."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import fx

from tpu_lowering import compat
from tpu_lowering.fuse.xla import layouts
from tpu_lowering.ir import graphs
from tpu_lowering.ir.chips import Chip
from tpu_lowering.runtime.aot import archive, hlo, program, refusals, trace
from tpu_lowering.runtime.aot.capture import Captured
from tpu_lowering.runtime.aot.program import TpuProgram

aten = compat.aten


@dataclasses.dataclass(frozen=True)
class SavedTensor:
    """A tensor that a backward gets from its forward.

    Attributes:
        name: in both graphs.
        shape, dtype: of the tensor, the latter as torch writes it: "bfloat16".
        nbytes: HBM bytes of the memory that it is in, with padding to tiles.
        memory: "own" for what is computed and nobody else gets; "argument" for the memory of an argument or parameter,
            and "result" for that of a result which the caller gets: these take none of their own.
        argument: the user's name of the argument or parameter whose memory it is in: "layers.0.weight", "x"; "" for
            what is computed, and where the name is not known.
        where: the user's source line of what computes it, ``file.py:line in function: code``; "" for an argument.
        given: position of the memory among the forward's arguments, or for what is computed among its results; None
            for an argument that the forward does not read.
        taken: position among the backward's arguments; None if the backward does not read it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    memory: str
    argument: str
    where: str
    given: int | None
    taken: int | None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TpuStep:
    """The forward and the backward of a function, compiled by libtpu for a chip that is not there.

    The backward takes what is saved, then the gradients of the results that require one. It gives the gradients of the
    captured tensors that require one, parameters included, but for one that it is given as it is: that of ``x + 1``.
    Nothing in it was measured on a TPU.

    Attributes:
        forward: the forward; it gives the function's results, then what is saved and computed.
        backward: the backward.
        saved: what is saved between the two.
        held_bytes: HBM bytes that are there while the backward runs, and are no arguments of it: parameters and inputs
            that it does not read, and results of the forward.
        gradients: for each result of the backward the user's name of what it is the gradient of; "" where the name is
            not known.
    """

    forward: TpuProgram
    backward: TpuProgram
    saved: tuple[SavedTensor, ...]
    held_bytes: int
    gradients: tuple[str, ...]

    @property
    def programs(self) -> tuple[TpuProgram, TpuProgram]:
        return self.forward, self.backward

    @property
    def chip(self) -> Chip:
        """What it was compiled for."""
        return self.forward.chip

    @property
    def fusion(self) -> str:
        """What generated kernels came to in both together, or why there are none; see ``TpuProgram.fusion``."""
        return self.forward.fusion

    @property
    def hbm_bytes_read(self) -> int:
        return sum(one.hbm_bytes_read for one in self.programs)

    @property
    def hbm_bytes_written(self) -> int:
        return sum(one.hbm_bytes_written for one in self.programs)

    @property
    def hbm_bytes(self) -> int:
        return self.hbm_bytes_read + self.hbm_bytes_written

    @property
    def peak_bytes(self) -> int:
        """The larger peak of the two, the backward's with what is held beside it."""
        return max(self.forward.peak_bytes, self.backward.peak_bytes + self.held_bytes)

    @property
    def saved_bytes(self) -> int:
        """HBM bytes of what is saved in memory of its own: no arguments, and no results of the function."""
        return sum({one.given: one.nbytes for one in self.saved if one.memory == "own"}.values())

    @property
    def schedule_cycles(self) -> int | None:
        """Cycles of both programs' simulated schedules; None if one is missing. See ``TpuProgram.schedule_cycles``."""
        cycles = [one.schedule_cycles for one in self.programs]
        return None if None in cycles else sum(count for count in cycles if count is not None)

    @property
    def bandwidth_bound_seconds(self) -> float:
        """``hbm_bytes`` over the chip's HBM bandwidth: no run of both can take less."""
        return self.hbm_bytes / self.chip.device_bytes_per_second

    @property
    def sent_bytes(self) -> int:
        """Bytes that a device sends in all collectives of both; see ``Collective.sent_bytes``."""
        return sum(one.sent_bytes for one in self.programs)

    @property
    def link_bound_seconds(self) -> float | None:
        """Both programs' bounds for the links; None where no bandwidth of them is published."""
        bounds = [one.link_bound_seconds for one in self.programs]
        return None if None in bounds else sum(bound for bound in bounds if bound is not None)

    @staticmethod
    def of(captured: Sequence[Captured], programs: Sequence[TpuProgram]) -> TpuStep:
        """The step of a captured forward and backward, and what was compiled of them."""
        forward, backward = programs
        saved = saved_tensors(captured[0], captured[1], forward)
        # AOTAutograd's backward gives a gradient for each argument of the forward, or None.
        outputs = captured[1].program.signature.outputs
        gradients = [name for name, spec in zip(captured[0].arguments, outputs, strict=False) if spec.is_computed]
        held = _Memories.of(captured[0], forward).held_bytes(saved)
        return TpuStep(forward, backward, saved, held, tuple(gradients))

    def __repr__(self) -> str:
        return f"<TpuStep: {self.forward!r}, {self.backward!r}, {self.saved_bytes:,} bytes saved>"

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses with TL104: what is compiled ahead of time is read and compared, never run."""
        raise refusals.never_run(type(self).__name__, self.chip)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes both static schedules as a timeline, the backward after the forward; see ``TpuProgram.trace``.

        Raises:
            TpuLoweringError: TL112 if there cannot be such a file.
        """
        trace.write(path, self.programs)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one file with both programs, as ``TpuProgram.save`` writes one.

        Raises:
            TpuLoweringError: TL112 if there cannot be such a file.
        """
        facts = dataclasses.asdict(_Facts(self.saved, self.held_bytes, self.gradients))
        members = {archive.SAVED: json.dumps(facts).encode()}
        for part, one in zip(archive.DIRECTIONS, self.programs, strict=True):
            members |= {f"{part}.{name}": data for name, data in one.members().items()}
        archive.write(path, members, program.versions())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> TpuStep:
        """Reads a saved step. Nothing in the file is unpickled or executed.

        Raises:
            TpuLoweringError: TL109 for a file that is damaged, not ours, of other versions, or of one program.
        """
        members = archive.read(path, program.versions(), archive.STEP)
        forward, backward = (
            program.from_members(path, {name: members[f"{part}.{name}"] for name in archive.PROGRAM})
            for part in archive.DIRECTIONS
        )
        try:
            facts = archive.typed(_Facts, archive.parsed(members[archive.SAVED]))
        except (ValueError, RecursionError) as error:
            raise archive.damaged(path, f"what a step saves, got {type(error).__name__}: {error}") from error
        return TpuStep(forward, backward, facts.saved, facts.held_bytes, facts.gradients)


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What a file has of a step beside its programs."""

    saved: tuple[SavedTensor, ...]
    held_bytes: int
    gradients: tuple[str, ...]


def lay_out_images(captured: Sequence[Captured]) -> list[Captured]:
    """A forward and its backward with the order in memory of each image that goes from one to the other, in both that
    of XLA's convolutions; a forward alone, and what all devices of a mesh run, as it is.

    JAX gives a result of a program the order of dimensions that is padded least, which for images is mostly another.
    The forward would copy each then, and the backward copy it back.
    """
    if len(captured) != 2 or any(one.mesh is not None for one in captured):
        return list(captured)
    forward, backward = captured
    signature = forward.program.signature
    results = list(forward.program.output_nodes())
    given: list[layouts.Order | None] = [None] * len(results)
    taken: list[layouts.Order | None] = [None] * len(backward.program.inputs)
    slots = {position: slot for slot, position in enumerate(backward.program.inputs)}
    computed = [at for at, spec in enumerate(signature.outputs) if spec.is_computed]
    for number, at in enumerate(computed):
        order = _order_to_save(results[number]) if signature.outputs[at].is_saved else None
        if order is not None and (slot := slots.get(at - forward.seen)) is not None:
            given[number] = taken[slot] = order
    if not any(taken):
        return list(captured)
    return [
        dataclasses.replace(forward, orders=(_defaults(forward.program.inputs), tuple(given))),
        dataclasses.replace(backward, orders=(tuple(taken), _defaults(backward.program.output_nodes()))),
    ]


def _order_to_save(result: fx.Node) -> layouts.Order | None:
    """The dimensions of a result from the outermost in memory to the innermost, if they are an image's and JAX would
    choose others; else None."""
    result = _in_order_of_shape(result)
    order = layouts.order_of(result)
    shape = graphs.type_of(result).shape
    is_images = order is not None and order == layouts.order_of_images(result)
    return order if is_images and order != layouts.order_in_memory(shape) else None


def _in_order_of_shape(result: fx.Node) -> fx.Node:
    """A result of a program before it is permuted into the order in memory."""
    is_placed = not graphs.source_line(result) and result.target is aten.permute.default
    return result.all_input_nodes[0] if is_placed else result


def _defaults(of: Sequence[object]) -> tuple[None, ...]:
    return (None,) * len(of)


def saved_tensors(forward: Captured, backward: Captured, compiled: TpuProgram) -> tuple[SavedTensor, ...]:
    """What a forward saves for its backward, in the order in which the backward is given it."""
    edge, found = forward.program.signature, list[SavedTensor]()
    given = backward.program.module.graph.find_nodes(op="placeholder")
    taken = {number: slot for slot, number in enumerate(backward.program.inputs)}
    memories = _Memories.of(forward, compiled)
    for number, (node, spec) in enumerate(zip(given, edge.outputs[forward.seen : edge.returned], strict=False)):
        value = node.meta.get("val")
        if spec.stride is not None and isinstance(value, torch.Tensor):
            dtype = str(value.dtype).removeprefix("torch.")
            memory = memories.of_result(forward.seen + number, value)
            found.append(SavedTensor(node.name, tuple(value.shape), dtype, *memory, taken.get(number)))
    return tuple(found)


@dataclasses.dataclass(frozen=True, eq=False)
class _Memories:
    """What a forward takes and gives, as it lies in memory."""

    forward: Captured
    arguments: tuple[int, ...]  # HBM bytes of each of the program's arguments
    results: tuple[int, ...]  # and of its results
    computed: tuple[int, ...]  # positions among the signature's outputs

    @staticmethod
    def of(forward: Captured, compiled: TpuProgram) -> _Memories:
        arguments, results = hlo.entry_types(compiled.hlo)
        computed = tuple(at for at, spec in enumerate(forward.program.signature.outputs) if spec.is_computed)
        taken, given = (tuple(array.hbm_bytes for array in arrays) for arrays in (arguments, results))
        return _Memories(forward, taken, given, computed)

    def of_result(self, at: int, value: torch.Tensor) -> tuple[int, str, str, str, int | None]:
        """Bytes, kind, argument, source line and position of an output of the signature; see ``SavedTensor``."""
        program, spec = self.forward.program, self.forward.program.signature.outputs[at]
        if spec.place is not None and spec.place.of_argument:
            position = spec.place.base
            slot = program.inputs.index(position) if position in program.inputs else None
            nbytes = value.numel() * value.itemsize if slot is None else self.arguments[slot]
            name = self.forward.arguments[position] if position < len(self.forward.arguments) else ""
            return nbytes, "argument", name, "", slot
        base = at if spec.place is None else spec.place.base
        number = self.computed.index(base)
        node = _in_order_of_shape(program.output_nodes()[number])
        kind = "result" if base < self.forward.seen else "own"
        return self.results[number], kind, "", graphs.source_line(node), number

    def held_bytes(self, saved: Sequence[SavedTensor]) -> int:
        """What is there beside a backward: arguments and results that it does not take."""
        program = self.forward.program
        taken = {(one.memory == "argument", one.given) for one in saved if one.taken is not None}
        arguments = range(len(program.inputs) - len(program.drawn_inputs()))
        results = [number for number, at in enumerate(self.computed) if at < self.forward.seen]
        return sum(self.arguments[slot] for slot in arguments if (True, slot) not in taken) + sum(
            self.results[number] for number in results if (False, number) not in taken
        )
