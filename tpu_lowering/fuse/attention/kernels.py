"""JAX's library kernels for attention as ``Kernel``s.

``flash_attention`` scales the scores itself and knows causal masks and biases; it is the one for a result alone.
``splash_attention`` takes any mask that is known while compiling, of which it skips what nobody sees, and has the
logsumexp and the gradients in fewer bytes. Both are traced, with what XLA computes around them, and then given what
their authors left out:

* they may use as much VMEM as their blocks were chosen for;
* the keys that splash wants scaled are not written first where XLA can compute them as they are fetched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.extend.core
import jax.numpy as jnp

from tpu_lowering import compat
from tpu_lowering.fuse.attention import added_columns
from tpu_lowering.fuse.attention.calls import AttentionCall, added_by, visible
from tpu_lowering.fuse.attention.static_masks import lengthened
from tpu_lowering.ir.kernels import Operand
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jaxprs
from tpu_lowering.kernels.jax_function import JaxKernel
from tpu_lowering.lower.precision import exact
from tpu_lowering.session import kept

TRACED = "a library kernel takes a second to trace, and holds its mask"


@kept(64, TRACED)
def splash_kernel(call: AttentionCall) -> JaxKernel:
    """softmax(scale * query @ keyᵀ + biases) @ value, of the keys that a mask leaves."""

    def run(query: jax.Array, key: jax.Array, value: jax.Array, *biases: jax.Array) -> Sequence[jax.Array]:
        added = added_by(call, biases) if biases else None
        kernel: Callable[..., Any] = _splash(call, False)
        for _ in call.outer[:-1]:
            kernel = jax.vmap(kernel)
        found = kernel(*added_columns.operands(call, query, _scaled_keys(call, key), value, added))
        results = (found[0], found[1][0]) if call.gives_logsumexp else (found,)
        result, *sums = added_columns.of_queries(call, results, added)
        return [result, *(lse.reshape(call.logsumexp.shape) for lse in sums)]

    result = _with(call.outer, call.result)
    results = [result, call.logsumexp] if call.gives_logsumexp else [result]
    return _kernel("splash_attention", call, run, _rows_with_outer(call), results)


@kept(64, TRACED)
def splash_gradient_kernel(call: AttentionCall) -> JaxKernel:
    """Gradients of query, key and value, of that of the result and what the forward gave."""

    def run(grad: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, *others: jax.Array) -> list[jax.Array]:
        result, logsumexp, *biases = others
        added = added_by(call, biases) if biases else None
        operands = added_columns.operands(call, query, _scaled_keys(call, key), value, added)
        grad, *kept = added_columns.given(call, grad, result, logsumexp, added)
        gradients = compat.splash_attention_gradients(_splash(call, True), operands, kept, grad)
        by_query, by_key, by_value = map(added_columns.cut, gradients, (call.query, call.key, call.value))
        return [by_query, _scaled(by_key, call.scale), by_value]

    query, key, value, *biases = _operand_types(call).items()
    types = dict([("grad", call.result), query, key, value, ("result", call.result), ("logsumexp", call.logsumexp)])
    return _kernel("splash_attention_gradient", call, run, types | dict(biases), [call.query, call.key, call.value])


@kept(64, TRACED)
def flash_kernel(call: AttentionCall) -> JaxKernel:
    """softmax(scale * query @ keyᵀ + biases) @ value; a query that no key is left of gives ``call.empty``.

    The only mask it has is a causal one.
    """

    def run(query: jax.Array, key: jax.Array, value: jax.Array, *biases: jax.Array) -> list[jax.Array]:
        total = added_by(call, biases) if biases else None
        shared = (*call.leading[:-1], call.leading[-1] // call.groups)
        grouped = query.reshape((*shared, call.groups, *query.shape[-2:]))
        key, value = (one.reshape((*shared, *one.shape[-2:])) for one in (key, value))
        results = _mapped(call, grouped, key, value, None if total is None else _prepared(call, total))
        out, lse = results if call.gives_logsumexp else (results, None)
        if total is not None:
            alive = jnp.any(visible(call, total), axis=-1, keepdims=True)
            out = jnp.where(alive, out.reshape((*call.leading, *out.shape[-2:])), call.empty)
        found = [out.astype(call.result.dtype).reshape(result.shape)]
        return found if lse is None else [*found, lse.reshape(call.logsumexp.shape)]

    result = _with(call.outer, call.result)
    results = [result, call.logsumexp] if call.gives_logsumexp else [result]
    return _kernel("flash_attention", call, run, _rows_with_outer(call), results)


def _rows_with_outer(call: AttentionCall) -> dict[str, TensorType]:
    """The operands' types, with the leading sizes of the scores."""
    rows = {"query": _with(call.outer, call.query)}
    rows |= {"key": _with(call.shared, call.key), "value": _with(call.shared, call.value)}
    return _operand_types(call) | rows


def _with(leading: Sequence[int], rows: TensorType) -> TensorType:
    """The type of rows [heads, length, width] with other sizes in front, of as many heads."""
    return rows.element[(*leading, *rows.shape[1:])]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttentionKernel(JaxKernel):
    """A library kernel in place of attention that the user wrote with operators."""

    generated: ClassVar[bool] = True


def _operand_types(call: AttentionCall) -> dict[str, TensorType]:
    types = {"query": call.query, "key": call.key, "value": call.value}
    return types | {f"bias_{at}": type_ for at, type_ in enumerate(call.bias_types)}


def _kernel(
    name: str, call: AttentionCall, run: Callable[..., Any], types: dict[str, TensorType], results: Sequence[TensorType]
) -> JaxKernel:
    closed = jaxprs.trace(exact(run, "matrices"), list(types.values()), results, call.chip)
    operands = tuple(Operand(operand, type_) for operand, type_ in types.items())
    return AttentionKernel(name, operands, tuple(results), call.where, call.chip, _completed(closed, call))


def _completed(closed: Any, call: AttentionCall) -> Any:
    """A traced kernel with leave to use VMEM and to have its scaled keys computed as they are fetched."""
    heads, length = call.key.shape[0], call.lengths[1]
    widths = (call.key.shape[2], added_columns.widened(call))
    shapes = [(heads, width, length) if call.length_minor[1] else (heads, length, width) for width in widths]
    computed = {variable for equation in closed.jaxpr.eqns for variable in equation.outvars}
    return completed(closed, call.vmem, lambda atom: atom in computed and atom.aval.shape in shapes)


def completed(closed: Any, vmem: int | None, is_fused: Callable[[Any], bool] = lambda atom: False) -> Any:
    """A traced kernel with leave to use VMEM and to have some operands computed as they are fetched.

    Args:
        closed: the closed jaxpr.
        vmem: bytes of VMEM that its ``pallas_call`` asks for; None for what XLA gives each operation.
        is_fused: whether an operand of that may be computed as it is fetched.
    """

    def complete(equation: Any) -> Any:
        if equation.primitive.name != "pallas_call":
            return equation
        given, fused = equation.params["compiler_params"], tuple(map(is_fused, equation.invars))
        chosen = compat.compiler_params(given, vmem_limit_bytes=vmem, allow_input_fusion=fused)
        # The metadata is text of many lines for a profiler; it is of no use in programs that are read line by line.
        named = {"metadata": None} if "metadata" in equation.params else {}
        return equation.replace(params={**equation.params, "compiler_params": chosen, **named})

    equations = [complete(equation) for equation in closed.jaxpr.eqns]
    return jax.extend.core.ClosedJaxpr(closed.jaxpr.replace(eqns=equations), closed.consts)


def _scaled_keys(call: AttentionCall, key: jax.Array) -> jax.Array:
    """Keys as they lie in memory, scaled: where the kernel exchanges their dimensions, that is done before."""
    if not call.together:
        return key if call.scale == 1 else (key.astype(jnp.float32) * call.scale).astype(key.dtype)
    if not call.length_minor[1]:
        return _scaled(key, call.scale)
    return _scaled(key.swapaxes(-1, -2), call.scale).swapaxes(-1, -2)


def _scaled(rows: jax.Array, scale: float) -> jax.Array:
    return rows if scale == 1 else (jax.lax.optimization_barrier(rows).astype(jnp.float32) * scale).astype(rows.dtype)


def _splash(call: AttentionCall, is_gradient: bool) -> Any:
    """The library's kernel for all heads of the batch, as heads of one sequence."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    from tpu_lowering.fuse.attention.splash_masks import splash_mask

    mask = lengthened(call.mask, (call.query.shape[1], call.key.shape[1]), call.lengths)
    seen = splash_mask(mask, call.lengths, call.blocks.by_position)
    sizes: dict[str, Any] = {"block_q": call.blocks.queries, "block_kv": call.blocks.keys}
    if is_gradient:
        sizes |= {f"{name}_dkv": size for name, size in sizes.items()} | {"use_fused_bwd_kernel": True}
        sizes["block_kv_dkv_compute"] = call.blocks.computed
    else:
        sizes["block_kv_compute"] = call.blocks.computed
    layouts = (library.QKVLayout.HEAD_DIM_MINOR, library.QKVLayout.SEQ_MINOR)
    sizes |= {f"{name}_layout": layouts[minor] for name, minor in zip("qkv", call.length_minor, strict=True)}
    return library.make_splash_mha(
        masks.MultiHeadMask([seen]),
        block_sizes=library.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=call.gives_logsumexp and not is_gradient,
        attn_logits_soft_cap=call.soft_cap,
    )


def _prepared(call: AttentionCall, total: jax.Array) -> jax.Array:
    """What the kernel adds before it scales: never infinite, as a block that hides all keys would then be NaN."""
    least = float(jnp.finfo(call.added.numpy).min)
    finite = jnp.where(total < 0, least / 2, 0.0) if call.narrow else jnp.maximum(total / call.scale, least / 2)
    bias = jnp.where(total == -jnp.inf, least, finite).astype(call.added.numpy)
    *leading, _, _ = bias.shape
    groups = call.groups
    last = (leading[-1] // groups, groups) if leading[-1] > 1 else (1, 1)
    return jnp.broadcast_to(
        bias.reshape((*leading[:-1], *last, *bias.shape[-2:])),
        (*leading[:-1], *last, call.query.shape[1], call.key.shape[1]),
    )


def _mapped(call: AttentionCall, query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None) -> Any:
    """The library's kernel over all leading dimensions, with keys and biases where they are: not one is repeated."""
    from jax.experimental.pallas.ops.tpu import flash_attention as library

    sizes = library.BlockSizes(
        block_q=call.blocks.queries, block_k_major=call.blocks.keys, block_k=call.blocks.computed, block_b=1
    )
    is_causal = call.mask is not None

    def one(*given: jax.Array | None) -> Any:
        operands = [x if x is None else x[None, None] for x in given]
        if not call.gives_logsumexp:
            result = library.flash_attention(*operands, causal=is_causal, sm_scale=call.scale, block_sizes=sizes)
            return result[0, 0]
        result, sums, tops = compat.flash_attention_sums(operands, is_causal, call.scale, sizes)
        return result[0, 0], (tops + jnp.log(sums))[0, 0]

    function: Callable[..., Any] = one
    leading = query.shape[:-2]
    own = (1,) * len(leading) if bias is None else bias.shape[:-2]
    for at in reversed(range(len(leading))):
        shared = None if at == len(leading) - 1 else 0
        function = jax.vmap(function, in_axes=(0, shared, shared, 0 if own[at] > 1 else None))
    if bias is not None:
        bias = bias.reshape((*(size for size in own if size > 1), *bias.shape[-2:]))
    return function(query, key, value, bias)
