"""What an executable for the CPU takes and gives, in which order."""

from __future__ import annotations

import dataclasses

from tpu_lowering.codegen import load
from tpu_lowering.ir.programs import Program
from tpu_lowering.ir.types import TensorType, i32
from tpu_lowering.runtime.imported_arguments import Input
from tpu_lowering.runtime.spread import on_device

TURNS = Input(i32[()], (), ())


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an executable takes and gives, in its order.

    It takes inputs that are read, constants, how many turns an update takes (see ``cpu_rewrites``) if there is one, and
    inputs that are updated. It gives the updated values, results, and new values of other mutated arguments.

    Attributes:
        inputs: what it takes.
        outputs: the types of what it gives.
        read: for each input that is only read, its position among the program's.
        updates: for each updated one its position in ``Signature.mutated`` and among the program's inputs.
    """

    inputs: tuple[Input, ...]
    outputs: tuple[TensorType, ...]
    read: tuple[int, ...]
    updates: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, program: Program, updates: tuple[tuple[int, int], ...], on_mesh: bool = False) -> Plan:
        inputs, types = list(map(Input.of, load.input_values(program))), program.types()
        if on_mesh:
            inputs = [dataclasses.replace(input_, type=_on_device(input_.type)) for input_ in inputs]
            types = list(map(_on_device, types))
        updated = [at for _, at in updates]
        read = tuple(at for at in range(len(program.inputs)) if at not in updated)
        taken = [*(inputs[at] for at in read), *inputs[len(program.inputs) :], *([TURNS] if updates else [])]
        new = new_at(program, updates)
        outputs = [inputs[at].type for at in updated] + [type_ for at, type_ in enumerate(types) if at not in new]
        return cls((*taken, *(inputs[at] for at in updated)), tuple(outputs), read, updates)

    def aliases(self) -> dict[int, int]:
        """For each output that takes the memory of an input, that input's position."""
        return {at: len(self.inputs) - len(self.updates) + at for at in range(len(self.updates))}


def _on_device(type_: TensorType) -> TensorType:
    return TensorType(type_.element, on_device(type_.shape))


def new_at(program: Program, updates: tuple[tuple[int, int], ...]) -> list[int]:
    """Positions of updated values among what a program gives: mutated values are the last of that."""
    first = len(program.types()) - len(program.signature.mutated)
    return [first + mutated for mutated, _ in updates]
