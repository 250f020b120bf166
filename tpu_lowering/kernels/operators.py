"""``kernel_op``: a JAX or Pallas function as a torch operator, in eager, under tracing and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import torch

from tpu_lowering import compat, errors
from tpu_lowering.ir import arguments, arrays, forks
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jax_function, jaxprs, registry, tpu_tensors, xla_tensors

# Operators live as long as their library object.
_libraries: list[torch.library.Library] = []


def kernel_op(
    name: str,
    *,
    mutates_args: Iterable[str] = (),
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    fake: Callable[..., Any] | None = None,
    sharding: str | None = None,
) -> Callable[[registry.Function], compat.OpOverload]:
    """Registers a JAX or Pallas function as a torch operator.

    The function's annotations are torch's (``torch.Tensor``, ``int``, ``list[torch.Tensor]``, ...) and
    give the operator's schema; when it runs, JAX arrays stand in place of the tensors. It returns the new
    values of the mutated arguments in schema order, then the operator's own results: one value bare,
    several as a tuple::

        @kernel_op("demo::exp_into", mutates_args=("out",))
        def exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
            return jnp.exp(x)

    The operator works in eager torch on CPU tensors too, by way of JAX, and on tensors of torch_xla and torch_tpu.

    Args:
        name: ``namespace::name``.
        mutates_args: names of the arguments that the operator writes to.
        backward: ``backward(ctx, *gradients)`` with one gradient for each mutated argument, then for each
            own result; returns one gradient for each argument, None for those that are no tensors. For a
            mutated argument it is the gradient of its old contents: None if none of them survive.
        setup_context: ``setup_context(ctx, inputs, output)`` saves what ``backward`` needs; ``output``
            holds the new values of the mutated arguments, then the own results.
        fake: ``fake(*args)`` gives tensors like the operator's own results. By default JAX is asked, which
            under ``dynamic=True`` specialises the graph to the shapes at hand.
        sharding: which dimensions may be split over a mesh, a term for each tensor argument and each value that the
            function returns: ``"rows cols, cols out -> rows out"``; see ``kernels.sharding_rules``.

    Returns:
        A decorator; it returns the operator, ``torch.ops.<namespace>.<name>.default``.

    Raises:
        TpuLoweringError: TL207 if the name is taken, TL208 if the annotations give no schema, TL715 if ``sharding`` is
            no rule for it. At the first use for given types: TL202, TL204 or TL206.
    """

    _check_arguments(name, mutates_args, {"backward": backward, "setup_context": setup_context, "fake": fake})

    def enter(function: registry.Function) -> compat.OpOverload:
        if not callable(function):
            raise not_registered(name, f"a function, got {type(function).__name__}", "decorate a function with it")
        overload = _define(name, tuple(mutates_args), function)
        surroundings = (backward, setup_context, fake)
        found = registry.register(overload, function, backward is not None, surroundings, sharding)
        library = _libraries[-1]
        short = compat.schema(overload).name.split("::")[1]
        library.impl(short, _eager(found), "CompositeExplicitAutograd")
        torch.library.register_fake(name, _fake(found, fake), lib=library)
        library.impl(short, _autograd(found, backward, setup_context), "Autograd")
        return overload

    return enter


def not_registered(name: Any, expected_got: str, remedy: str, where: str = "") -> errors.TpuLoweringError:
    """The refusal of what cannot become an operator. ``expected_got``: "X, got Y"."""
    return errors.refuse("TL208", str(name), f"expected {expected_got}", remedy, where)


def _check_arguments(name: Any, mutates_args: Any, functions: Mapping[str, Any]) -> None:
    if not isinstance(name, str):
        called = getattr(name, "__name__", None)
        got = f"the function {called}" if callable(name) and called else type(name).__name__
        remedy = f"write @kernel_op('my_ops::{called or 'name'}') above the function"
        raise not_registered("kernel_op", f"the operator's name, got {got}", remedy, registry.source_line(name))
    names = None if isinstance(mutates_args, (str, bytes)) or not isinstance(mutates_args, Iterable) else mutates_args
    if names is None or not all(isinstance(one, str) for one in names):
        expected = f"mutates_args as a tuple of names, got {mutates_args!r}"
        raise not_registered(name, expected, "write mutates_args=('out',)")
    for role, function in functions.items():
        if function is not None and not callable(function):
            raise not_registered(name, f"{role} as a function, got {function!r}", f"pass a function as {role}")


def _define(name: str, mutates_args: Sequence[str], function: registry.Function) -> compat.OpOverload:
    where = registry.source_line(function)
    if name.count("::") != 1:
        raise not_registered(
            repr(name), f"'namespace::name', got {name!r}", "write kernel_op('my_ops::name', ...)", where
        )
    namespace, short = name.split("::")
    if hasattr(getattr(torch.ops, namespace), short):
        raise errors.refuse(
            "TL207", name, "expected a new operator name, got one that torch knows already",
            "choose another name, or give the existing operator a kernel with @register_kernel", where,
        )  # fmt: skip
    try:
        schema = torch.library.infer_schema(function, mutates_args=mutates_args)
    except ValueError as error:
        raise errors.refuse(
            "TL208",
            name,
            f"expected annotations that torch can turn into a schema, got {jax_function.first_line(error)}",
            "annotate every parameter and the return value as for torch.library.custom_op",
            where,
        ) from error
    library = torch.library.Library(namespace, "FRAGMENT")
    library.define(f"{short}{schema}")
    _libraries.append(library)
    return getattr(getattr(torch.ops, namespace), short).default


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _own_result_types(found: registry.Implementation, bound: Mapping[str, Any]) -> list[TensorType]:
    """Types of the operator's own results, by abstract evaluation of the JAX function."""
    if not compat.schema(found.overload).returns:
        return []
    template, tensors = arguments.split(dict(bound), _is_tensor)
    specs = [jax.ShapeDtypeStruct(tuple(map(int, t.shape)), TensorType.of(t).dtype) for t in tensors]

    def evaluate(*given: Any) -> Any:
        return found.function(*arguments.fill(template, given).values())

    try:
        try:  # so that a result of 64 bits keeps them
            with compat.enable_x64(True):
                results = jax.eval_shape(evaluate, *specs)
        except TypeError:  # index maps of int32 do not allow it
            with jaxprs.kernel_scope([TensorType.of(tensor) for tensor in tensors]):
                results = jax.eval_shape(evaluate, *specs)
        mutated = sum(len(arguments.slots(template[name])) for name in found.mutated)
        own = [TensorType.of(result) for result in jax.tree.leaves(results)[mutated:]]
    except errors.TpuLoweringError:
        raise
    except Exception as error:
        raise jax_function.not_traceable(found, error) from error
    returns = [str(value.type) for value in compat.schema(found.overload).returns]
    count = len(returns)
    if set(returns) == {"Tensor"} and len(own) != count:
        raise errors.refuse(
            "TL202",
            found.name,
            f"expected {count} results of its own, got {len(own)}",
            "return the new values of the mutated arguments in schema order, then the operator's own results",
            found.where,
        )
    return own


def _fake(found: registry.Implementation, fake: Callable[..., Any] | None) -> Callable[..., Any]:
    def infer(*args: Any, **kwargs: Any) -> Any:
        bound = arguments.bind(compat.schema(found.overload), args, kwargs)
        tensors = arguments.split(bound, _is_tensor)[1]
        device = tensors[0].device if tensors else None
        results = tuple(
            torch.empty(type_.shape, dtype=type_.element.torch, device=device)
            for type_ in _own_result_types(found, bound)
        )
        return _as_returned(found, results)

    return fake or infer


def _as_returned(found: registry.Implementation, results: tuple[torch.Tensor, ...]) -> Any:
    count = len(compat.schema(found.overload).returns)
    return None if count == 0 else results[0] if count == 1 else results


def _eager(found: registry.Implementation) -> Callable[..., Any]:
    """The operator on real tensors: run the function through JAX, write back what it mutates.

    On tensors of torch_xla it is one computation of the lazy graph, on those of torch_tpu one launch.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        forks.refuse_after_fork()
        bound = arguments.bind(compat.schema(found.overload), args, kwargs)
        template, tensors = arguments.split(bound, _is_tensor)
        types = arguments.fill(template, [TensorType.of(tensor) for tensor in tensors])
        kernel = jax_function.specialise(found, types, _own_result_types(found, bound))
        if xla_tensors.are_real(tensors):
            results = xla_tensors.of_kernel(kernel)(tensors)
        elif tpu_tensors.are_real(tensors):
            results = tpu_tensors.of_kernel(kernel)(tensors)
        else:
            with compat.enable_x64(True):
                results = [arrays.borrowed(value) for value in kernel.form("vectorized")(*map(arrays.to_jax, tensors))]
        for operand, tensor in zip(kernel.operands, tensors, strict=True):
            if operand.result is not None:
                tensor.copy_(results[operand.result])
        return _as_returned(found, tuple(result.clone() for result in results[len(kernel.tied()) :]))

    return run


def _autograd(
    found: registry.Implementation, backward: Callable[..., Any] | None, setup_context: Callable[..., None] | None
) -> Callable[..., Any]:
    """The operator where gradients may be recorded."""
    schema, eager = compat.schema(found.overload), _eager(found)

    def below(*args: Any, **kwargs: Any) -> Any:
        # torch_xla's tensors go on to functionalization, which refuses every operator that mutates.
        tensors = arguments.split((args, kwargs), _is_tensor)[1]
        with compat.below_autograd():
            return (eager if xla_tensors.are_real(tensors) else found.overload)(*args, **kwargs)

    def refuse_gradient(*args: Any, **kwargs: Any) -> Any:
        bound = arguments.bind(schema, args, kwargs)
        if torch.is_grad_enabled():
            for name, value in bound.items():
                # Dynamo's fake tensors pass: its graph goes to a backend, where ``gradients`` or AOTAutograd,
                # which runs this again, refuses it.
                tensors = [tensor for tensor in arguments.split(value, _is_tensor)[1] if not arrays.is_fake(tensor)]
                if any(tensor.requires_grad for tensor in tensors):
                    raise no_backward(found.name, name, found.where)
        return below(*args, **kwargs)

    if backward is None:
        return refuse_gradient
    mutated = [index for index, argument in enumerate(schema.arguments) if argument.name in found.mutated]

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            results = below(*args)
            own = () if results is None else results if isinstance(results, tuple) else (results,)
            return (*(args[index] for index in mutated), *own)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.mark_dirty(*(inputs[index] for index in mutated))
            if setup_context is not None:
                setup_context(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return backward(ctx, *gradients)

    Recorded.__name__ = f"{schema.name.split('::')[1]}_with_backward"

    def record(*args: Any, **kwargs: Any) -> Any:
        bound = arguments.bind(schema, args, kwargs)
        results = Recorded.apply(*bound.values())
        return _as_returned(found, tuple(results[len(mutated) :]))

    return record


def no_backward(kernel: str, argument: str, where: str) -> errors.TpuLoweringError:
    """The refusal of a gradient through a kernel that has no backward."""
    return errors.refuse(
        "TL205",
        kernel,
        f"expected a backward, because argument '{argument}' requires a gradient, got none",
        "register one with kernel_op(..., backward=...), call the kernel on x.detach(), or use torch.no_grad()",
        where,
    )
