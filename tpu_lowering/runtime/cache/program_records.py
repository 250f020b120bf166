"""A compiled program written down: its interface, its constants and where its executable is.

With a record a later process calls the program without its graph.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import torch

from tpu_lowering import compat
from tpu_lowering.ir import arrays
from tpu_lowering.ir.programs import Interface, MemoryPlace, Output, Signature
from tpu_lowering.ir.types import TensorType, element_type
from tpu_lowering.kernels.fingerprints import Followed
from tpu_lowering.runtime.cache import executables
from tpu_lowering.runtime.cache.known_kernels import KnownKernel
from tpu_lowering.runtime.cache.store import Store, digest
from tpu_lowering.runtime.cpu import CpuProgram
from tpu_lowering.runtime.imported_arguments import Input
from tpu_lowering.runtime.plans import Plan

PLAIN = (bool, int, float, type(None))


def save(store: Store, program: CpuProgram, kernels: Sequence[KnownKernel] = ()) -> str | None:
    """Writes a program's record, and which kernels the program was made of.

    Returns:
        Its key; None for a program that no record tells all of: one that draws random numbers, whose executable is
        not stored, or that returns something else than tensors, numbers and None.
    """
    interface = program.interface
    plain = all(type(output.constant) in PLAIN for output in interface.signature.outputs)
    if program.stored is None or interface.drawn or not plain:
        return None
    with compat.enable_x64(True), compat.disable_current_modes():  # AOTAutograd's fake tensors
        constants = [np.asarray(arrays.to_jax(value)) for value in program.constants]
    described = {
        "surroundings": digest([executables.surroundings()]),
        "executable": program.stored,
        "inputs": [[_spec(one.type), one.order, one.stride] for one in program.plan.inputs],
        "outputs": list(map(_spec, program.plan.outputs)),
        "read": program.plan.read,
        "updates": program.plan.updates,
        "taken": interface.inputs,
        "signature": _signature_as_json(interface.signature),
        "constants": [_spec(value) for value in constants],
        "kernels": list(map(dataclasses.asdict, kernels)),
    }
    contents = b"\n".join([json.dumps(described).encode(), b"".join(value.tobytes() for value in constants)])
    key = digest([contents])
    store.write(key, contents)
    return key


def load(store: Store, key: str) -> tuple[CpuProgram, tuple[Followed, ...]]:
    """The program of a record, and what its kernels are made of.

    Raises:
        LookupError: the record or its executable is not there, or is of other versions, flags or another processor, or
            a kernel that it was made of is not there, or does something else now.
    """
    contents = store.read(key)
    if contents is None:
        raise LookupError(f"expected a record under {key}, got none")
    head, _, data = contents.partition(b"\n")
    described = json.loads(head)
    if described["surroundings"] != digest([executables.surroundings()]):
        raise LookupError(f"expected a record of these versions, flags and this processor under {key}, got another")
    kernels = tuple(KnownKernel(**kernel).followed() for kernel in described["kernels"])
    inputs = [Input(_type(spec), tuple(order), tuple(stride)) for spec, order, stride in described["inputs"]]
    outputs = list(map(_type, described["outputs"]))
    updates = tuple((mutated, at) for mutated, at in described["updates"])
    plan = Plan(tuple(inputs), tuple(outputs), tuple(described["read"]), updates)
    run = executables.load(store, described["executable"], outputs)
    if run is None:
        raise LookupError(f"expected an executable under {described['executable']}, got none")
    constants = _constants(list(map(_type, described["constants"])), data)
    interface = Interface(tuple(described["taken"]), _signature_from_json(described["signature"]))
    return CpuProgram(interface, plan, constants, run, described["executable"]), kernels


def _spec(value: Any) -> list[Any]:
    return [str(value.dtype), list(value.shape)]


def _type(spec: Sequence[Any]) -> TensorType:
    element = element_type(jax.numpy.dtype(spec[0]))
    assert element is not None
    return element[tuple(spec[1])]


def _constants(types: Sequence[TensorType], data: bytes) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for type_ in types:
        size, dtype = type_.nbytes, type_.element.torch
        memory = torch.frombuffer(bytearray(data[:size]), dtype=dtype) if size else torch.empty(0)
        found.append(memory.to(dtype).reshape(type_.shape))
        data = data[size:]
    return found


def _signature_as_json(signature: Signature) -> dict[str, Any]:
    described = dataclasses.asdict(signature)
    for output in described["outputs"]:
        if output["place"] is not None:
            output["place"]["dtype"] = str(output["place"]["dtype"]).removeprefix("torch.")
    return described


def _signature_from_json(described: dict[str, Any]) -> Signature:
    outputs: list[Output] = []
    for output in described["outputs"]:
        stride, place = output["stride"], output["place"]
        if place is not None:
            place = MemoryPlace(**{**place, "dtype": getattr(torch, place["dtype"])})
        described_stride = None if stride is None else tuple(stride)
        outputs.append(Output(described_stride, tuple(output["shape"]), output["constant"], place, output["is_saved"]))
    return Signature(tuple(outputs), described["returned"], tuple(described["mutated"]))
