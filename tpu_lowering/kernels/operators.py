"""``kernel_op``: a JAX or Pallas function as a torch operator, in eager, under tracing and compiled."""

from __future__ import annotations

import difflib
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import torch

from tpu_lowering import compat, errors, offenders
from tpu_lowering.ir import arguments, arrays, forks
from tpu_lowering.ir.types import TensorType
from tpu_lowering.kernels import jax_function, jaxprs, registry, tpu_tensors, xla_tensors

# Operators live as long as their library object; by their names.
_libraries: dict[str, torch.library.Library] = {}


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

    A function that is defined again, as by a notebook's cell that is run again, replaces its operator, with another
    schema too. What was compiled with the old one is compiled again.

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
        return _registered(name, tuple(mutates_args), function, (backward, setup_context, fake), sharding)

    return enter


def _registered(
    name: str,
    mutates_args: Sequence[str],
    function: registry.Function,
    surroundings: tuple[registry.Function | None, ...],
    sharding: str | None,
) -> compat.OpOverload:
    """An operator with its kernel, backward and types; an old one goes once the new one is known to be good."""
    backward, setup_context, fake = surroundings
    schema = _schema(name, mutates_args, function)
    registry.checked(name, compat.parsed_schema(f"{name}{schema}"), function, sharding)
    overload = _define(name, schema, function)
    found = registry.register(overload, function, backward is not None, surroundings, sharding)
    library = _libraries[name]
    short = compat.schema(overload).name.split("::")[1]
    library.impl(short, _eager(found), "CompositeExplicitAutograd")
    torch.library.register_fake(name, _fake(found, fake), lib=library)
    library.impl(short, _autograd(found, backward, setup_context), "Autograd")
    return overload


def not_registered(name: Any, expected_got: str, remedy: str, where: str = "") -> errors.TpuLoweringError:
    """The refusal of what cannot become an operator. ``expected_got``: "X, got Y"."""
    return errors.refuse("TL208", str(name), f"expected {expected_got}", remedy, where)


def _check_arguments(name: Any, mutates_args: Any, functions: Mapping[str, Any]) -> None:
    if not isinstance(name, str):
        called = offenders.name_of(name).rpartition(".")[2] if callable(name) else ""
        remedy = f"write @kernel_op('my_ops::{called if called.isidentifier() else 'kernel'}') above the function"
        got = offenders.shown(name)
        raise not_registered("kernel_op", f"the operator's name, got {got}", remedy, offenders.definition(name))
    names = None if isinstance(mutates_args, (str, bytes)) or not isinstance(mutates_args, Iterable) else mutates_args
    if names is None or not all(isinstance(one, str) for one in names):
        expected = f"mutates_args as a tuple of names, got {offenders.shown(mutates_args)}"
        raise not_registered(name, expected, "write mutates_args=('out',)")
    for role, function in functions.items():
        if function is not None and not callable(function):
            expected = f"{role} as a function, got {offenders.shown(function)}"
            raise not_registered(name, expected, f"pass a function as {role}")


def _schema(name: str, mutates_args: Sequence[str], function: registry.Function) -> str:
    """The schema that a function's annotations give, without the operator's name."""
    where = offenders.definition(function)
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*::[A-Za-z_]\w*", name):
        raise not_registered(
            repr(name),
            f"'namespace::name', got {name!r}",
            f"write kernel_op('my_ops::{name if name.isidentifier() else 'kernel'}', ...)",
            where,
        )
    try:
        prototype = _annotated(function)
        unknown = [one for one in mutates_args if one not in inspect.signature(prototype).parameters]
        if unknown:
            taken = tuple(inspect.signature(prototype).parameters)
            expected = f"mutates_args among the arguments {', '.join(taken)}, got {unknown[0]!r}"
            near = difflib.get_close_matches(unknown[0], taken, n=1, cutoff=0.0)
            remedy = f"write mutates_args=({near[0]!r},)" if near else "leave mutates_args out"
            raise not_registered(name, expected, remedy, where)
        return torch.library.infer_schema(prototype, mutates_args=mutates_args)
    except (ValueError, TypeError, NameError) as error:
        raise not_registered(
            name,
            f"annotations that torch can turn into a schema, got {_without_lists(jax_function.first_line(error))}",
            "annotate every parameter and the return value as for torch.library.custom_op: torch.Tensor, int, float, "
            "bool, str, torch.dtype, torch.device, lists and Optionals of them",
            where,
        ) from error


def _annotated(function: registry.Function) -> registry.Function:
    """What torch infers a schema from: it knows the annotations of functions alone."""
    if isinstance(function, (types.FunctionType, types.MethodType)):
        return function

    def prototype() -> None: ...

    prototype.__signature__ = inspect.signature(function, eval_str=True)  # type: ignore[attr-defined]
    return prototype


def _without_lists(message: str) -> str:
    """What torch says of an annotation, without the signature and without all annotations that it knows."""
    first = message.removeprefix("infer_schema(func): ").partition(" Got func with signature ")[0]
    return first.partition(" The valid types are: ")[0]


def _define(name: str, schema: str, function: registry.Function) -> compat.OpOverload:
    """Defines an operator; one of this name goes if the function is its own, defined again."""
    namespace, short = name.split("::")
    known: Any = getattr(getattr(torch.ops, namespace), short, None)
    if known is not None and not isinstance(known, compat.OpOverloadPacket):
        got = f"a name that torch.ops.{namespace} does not have itself, got {short!r}"
        raise not_registered(name, got, "choose another name", offenders.definition(function))
    first = None if known is None else registry.implementation(getattr(known, "default", None))
    if known is not None:
        if name not in _libraries or first is None or not registry.defines_again(function, first):
            raise _name_taken(name, function, first)
        compat.forget_operators(_libraries.pop(name))
    library = torch.library.Library(namespace, "FRAGMENT")
    library.define(f"{short}{schema}")
    _libraries[name] = library
    overload = getattr(getattr(torch.ops, namespace), short).default
    if first is not None:
        compat.send_calls(first.overload, overload)
    return overload


def _name_taken(
    name: str, function: registry.Function, first: registry.Implementation | None
) -> errors.TpuLoweringError:
    if first is None or not first.is_own:
        known, remedy = "one that torch knows already", "give the existing operator a kernel with @register_kernel"
    else:
        old = offenders.function_of(first.function)
        known = f"that of the kernel at {first.where}"
        remedy = f"call the function {old.__name__}, in the module {old.__module__}, if it is to replace that kernel"
        if registry.is_same_name(function, first):
            remedy = "give each kernel that is made here one of its own"
    return errors.refuse(
        "TL207", name, f"expected a new operator name, got {known}",
        f"choose another name, or {remedy}", offenders.definition(function),
    )  # fmt: skip


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _own_result_types(found: registry.Implementation, bound: Mapping[str, Any]) -> list[TensorType]:
    """Types of the operator's own results, by abstract evaluation of the JAX function."""
    if not compat.schema(found.overload).returns:
        return []
    template, tensors = arguments.split(dict(bound), _is_tensor)
    specs = [jax.ShapeDtypeStruct(tuple(map(int, t.shape)), TensorType.of(t).dtype) for t in tensors]

    def evaluate(*given: Any) -> Any:
        return jax_function.results_of(found, arguments.fill(template, given))

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
            f"expected {count} result{'s' * (count != 1)} of its own, got {len(own)}",
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
                    raise no_backward(found.name, name, found.where, KERNEL_OP)
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


KERNEL_OP = "register one with kernel_op(..., backward=...)"
"""How a kernel of ``kernel_op`` gets a backward."""


def no_backward(kernel: str, argument: str, where: str, remedy: str) -> errors.TpuLoweringError:
    """The refusal of a gradient through a kernel that has no backward. ``argument``: "" for one that is not known;
    ``remedy``: how it gets a backward."""
    whose = f"argument '{argument}' requires a gradient" if argument else "a gradient of its result is needed"
    return errors.refuse(
        "TL205",
        kernel,
        f"expected a backward, because {whose}, got none",
        f"{remedy}, call the kernel on x.detach(), or use torch.no_grad()",
        where,
    )
