"""Captured graphs as callables: compiled for the sizes they are called with, once for each."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import fx

from tpu_lowering import compat, pipeline
from tpu_lowering.codegen import source
from tpu_lowering.normalise import randomness, specialise
from tpu_lowering.options import Options
from tpu_lowering.runtime.base import RunnableProgram, Runtime


class CapturedGraph:
    """One graph from AOTAutograd. AOTAutograd calls it with a list of arguments, which it empties.

    A graph with symbolic sizes is compiled for each set of sizes it meets, beneath Dynamo: neither Dynamo
    nor AOTAutograd runs again.
    """

    def __init__(
        self,
        kind: str,
        number: int,
        module: fx.GraphModule,
        examples: Sequence[Any],
        options: Options,
        observer: pipeline.Observer,
        runtime: Runtime,
    ) -> None:
        # AOTAutograd's protocol for callables that take one list. On the object, not the class: Dynamo wraps
        # the backward graph and takes over only the object's own attributes.
        self._boxed_call = True
        self.kind, self.number = kind, number
        self.module, self.options, self.observer, self.runtime = module, options, observer, runtime
        self.lock = threading.Lock()
        self.programs: dict[Hashable, RunnableProgram] = {}
        randomness.give_states_a_size(module.graph)
        self.symbolic = any(_is_symbolic(node.meta.get("val")) for node in module.graph.nodes)
        runtime.check(examples)
        if self.symbolic:
            specialise.refuse_data_dependence(module.graph)
        else:
            self.only = self._compile(examples)

    def __call__(self, arguments: list[Any]) -> list[Any]:
        program = self._for_sizes(arguments) if self.symbolic else self.only
        given = list(arguments)
        arguments.clear()
        return program(given)

    def _for_sizes(self, arguments: Sequence[Any]) -> RunnableProgram:
        key = tuple(_size_key(argument) for argument in arguments)
        program = self.programs.get(key)
        if program is None:
            with self.lock:
                program = self.programs.get(key) or self._compile(arguments)
                self.programs[key] = program
        return program

    def _compile(self, arguments: Sequence[Any]) -> RunnableProgram:
        suffix = f"_{len(self.programs)}" if self.symbolic else ""
        with compat.disable_current_modes():  # real tensors are computed with here: verifying, constants
            program = pipeline.run(
                f"{self.kind}_{self.number}{suffix}",
                self.module,
                arguments,
                self.options,
                self.observer,
                device_kind=self.runtime.device_kind,
                shares_memory=self.kind == "inference",  # AOTAutograd sees to it where gradients are recorded
            )
            text = source.generate(program, self.options.poison)
            self.observer.compiled(program, text)
            self.observer.acted(program.name, "run", self.runtime.remarks(program))
            return self.runtime.compile(program, text)


def _is_symbolic(value: Any) -> bool:
    return any(
        isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool))
        or (isinstance(leaf, torch.Tensor) and not all(type(size) is int for size in (*leaf.shape, *leaf.stride())))
        for leaf in compat.tree_leaves(value)
    )


def _size_key(argument: Any) -> Hashable:
    if isinstance(argument, torch.Tensor):
        return (argument.shape, argument.stride(), argument.storage_offset(), argument.dtype)
    return (type(argument), argument)
