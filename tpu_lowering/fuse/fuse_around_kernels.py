"""Fuse around kernels: pointwise work on a kernel's operands and results becomes part of the kernel.

Before::

    mul = aten.mul(x, 2)
    k = kernel_call(exp_into, (mul, None))
    add = aten.add(getitem(k, 0), 1)

After::

    k = kernel_call(exp_into_with_mul_add, (x,))
    add = getitem(k, 0)

XLA cannot look into a kernel: it writes ``mul`` for the kernel to read, and reads what the kernel wrote.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
from torch import fx

from tpu_lowering import errors
from tpu_lowering.fuse.around_kernels import chains
from tpu_lowering.fuse.around_kernels.chains import Chain
from tpu_lowering.fuse.around_kernels.extended_kernel import BlockWork, Extended, block_sizes, expressible, touchable
from tpu_lowering.ir import graphs
from tpu_lowering.ir.actions import Action
from tpu_lowering.ir.kernels import Kernel, Operand, kernel_call
from tpu_lowering.kernels import jaxprs


@dataclasses.dataclass(frozen=True)
class FuseAroundKernels:
    """See the module's docstring."""

    name: str = "fuse_around_kernels"

    def __call__(self, graph: fx.Graph) -> list[Action]:
        actions = [action for node in graphs.kernel_calls(graph) if (action := _extend(graph, node)) is not None]
        graphs.sort_by_use(graph)
        return actions


@dataclasses.dataclass(frozen=True)
class _Around:
    """What is fused with one kernel call, by the position of a block: operands of the ``pallas_call``, then results."""

    before: dict[int, Chain]
    after: dict[int, Chain]


def _extend(graph: fx.Graph, node: fx.Node) -> Action | None:
    kernel, operands = graphs.kernel_of(node), graphs.operands_of(node)
    read = [operand for slot, operand in zip(kernel.operands, operands, strict=True) if slot.result is None]
    fresh = all(
        operand is None for slot, operand in zip(kernel.operands, operands, strict=True) if slot.result is not None
    )
    parts = {part.args[1]: part for part in node.users}
    wanted = _Around(
        {at: chain for at, operand in enumerate(read) if (chain := chains.producers(operand)) is not None},  # type: ignore[arg-type]
        {
            len(read) + at: chain
            for at, part in parts.items()
            if isinstance(at, int) and (chain := chains.consumers(part)) is not None
        },
    )
    if not fresh or isinstance(kernel, Extended) or not (wanted.before or wanted.after):
        return None
    call = _call_of(kernel)
    if call is None:
        where = next(iter((*wanted.before.values(), *wanted.after.values()))).result
        return Action.on(
            "unfused",
            where,
            f"the work around {kernel.name} stays outside: the kernel is no single pallas_call of blocks",
            "TL606",
        )
    around = _Around(
        {at: chain for at, chain in wanted.before.items() if touchable(call, at) and _is_read_no_more(chain)},
        {at: chain for at, chain in wanted.after.items() if touchable(call, at)},
    )
    if not (around.before or around.after):
        return None
    return _replace(graph, node, kernel, read, call, around)  # type: ignore[arg-type]


def _call_of(kernel: Kernel) -> Any | None:
    """The one ``pallas_call`` that a kernel is, with fresh outputs; None if it is anything else."""
    slots = [slot for slot in kernel.operands if slot.result is None]

    def run(*values: jax.Array) -> Any:
        given = iter(values)
        return kernel.trace([next(given) if slot.result is None else None for slot in kernel.operands], "mosaic")

    specs = [jax.ShapeDtypeStruct(slot.type.shape, slot.type.dtype) for slot in slots]
    try:
        with jaxprs.kernel_scope([slot.type for slot in kernel.operands], kernel.chip):
            closed = jaxprs.inlined(jax.make_jaxpr(run)(*specs))
    except errors.TpuLoweringError:
        return None
    jaxpr = closed.jaxpr
    alone = len(jaxpr.eqns) == 1 and jaxpr.eqns[0].primitive.name == "pallas_call"
    if not alone or jaxpr.eqns[0].invars != jaxpr.invars or jaxpr.eqns[0].outvars != jaxpr.outvars:
        return None
    return jaxpr.eqns[0] if expressible(jaxpr.eqns[0]) else None


def _is_read_no_more(chain: Chain) -> bool:
    """Whether reading what a chain takes is no dearer than reading its result, however often a kernel does."""
    return chain.nbytes <= graphs.type_of(chain.result).nbytes


def _replace(
    graph: fx.Graph, node: fx.Node, kernel: Kernel, read: Sequence[fx.Node], call: Any, around: _Around
) -> Action:
    count, blocks = len(read), call.params["grid_mapping"].block_mappings
    operands: list[fx.Node] = []
    sources: list[int] = []

    def operand(value: fx.Node, at: int) -> int:
        """Position of a value that lies like a block."""
        for position, known in enumerate(zip(operands, sources, strict=True)):
            if known == (value, at):
                return position
        operands.append(value)
        sources.append(at)
        return len(operands) - 1

    kept = tuple(None if at in around.before else operand(value, at) for at, value in enumerate(read))
    names: list[str] = []

    def work(at: int, chain: Chain, own: fx.Node | None) -> BlockWork:
        name = f"{'_'.join(str(m.target).split('.')[1] for m in chain.members[:3])}_{at}"
        names.append(name.rpartition("_")[0])
        text = chains.write(chain, block_sizes(blocks[at]), name)
        takes = tuple(-1 if value is own else operand(value, at) for value in chain.inputs)
        return BlockWork(at, text, name, takes, graphs.type_of(chain.result))

    parts: dict[int, fx.Node] = {part.args[1]: part for part in node.users}  # type: ignore[misc]
    before = tuple(work(at, chain, None) for at, chain in around.before.items())
    after = tuple(work(at, chain, parts[at - count]) for at, chain in around.after.items())
    results = [
        graphs.type_of(around.after[count + at].result) if count + at in around.after else type_
        for at, type_ in enumerate(kernel.results)
    ]
    slots = tuple(Operand(f"operand_{at}", graphs.type_of(value)) for at, value in enumerate(operands))
    name = f"{kernel.name.replace('::', '_')}_with_{'_'.join(dict.fromkeys(names))}"
    new = Extended(name, slots, tuple(results), kernel.where, kernel.chip, call, tuple(sources), kept, before, after)
    chosen = [*around.before.values(), *around.after.values()]
    count_of = sum(len(chain.members) for chain in chosen)
    action = Action.on("fused", chosen[-1].result, f"{count_of} operations around {kernel.name} are part of the kernel")
    with graphs.inserting_for(node):
        made = graphs.call(graph, kernel_call, new, tuple(operands))
        for at, part in parts.items():
            last = around.after[count + at].result if count + at in around.after else part
            last.replace_all_uses_with(graphs.call(graph, operator.getitem, made, at))
    for chain in around.after.values():
        for member in reversed(chain.members):
            graph.erase_node(member)
    for part in parts.values():
        graph.erase_node(part)
    graph.erase_node(node)
    for chain in around.before.values():
        for member in reversed(chain.members):
            if not member.users:
                graph.erase_node(member)
    return action
