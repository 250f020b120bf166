"""Functions of which a number is somewhere else than in their code, each with what puts another number there.

Multiplying by the number is all that they do, so it can be read off what a kernel that was made of one computed.
"""

from __future__ import annotations

import contextvars
import dataclasses
import enum
import functools
import json
import math
import os
import pathlib
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax, nn
from jax.experimental import pallas as pl

Function = Callable[[Any], Any]
Put = Callable[[int], None]
TABLE: dict[str, tuple[Function, Put]] = {}
FILE = pathlib.Path(tempfile.gettempdir()) / f"settable_{os.getpid()}"


def entry(put: Put) -> Callable[[Function], Function]:
    def enter(function: Function) -> Function:
        TABLE[function.__name__] = (function, put)
        return function

    return enter


def put_global(name: str) -> Put:
    return lambda number: globals().update({name: number})


# Values that can be followed.
FACTOR, IN_LOOP, IN_BODY, IN_JIT, IN_HELPER, SWITCH = 1, 1, 1, 1, 1, 1
LISTED, NAMED = [1], {"factor": {"is": 1}}


@entry(put_global("FACTOR"))
def a_global(x: Any) -> Any:
    return x * FACTOR


def loop_body(index: Any, value: Any) -> Any:
    return value * IN_LOOP


@entry(put_global("IN_LOOP"))
def a_global_of_a_loop_body(x: Any) -> Any:
    return lax.fori_loop(0, 1, loop_body, x)


def pallas_body(x_ref: Any, out_ref: Any) -> None:
    out_ref[...] = x_ref[...] * IN_BODY


@entry(put_global("IN_BODY"))
def a_global_of_a_pallas_body(x: Any) -> Any:
    return pl.pallas_call(pallas_body, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


@jax.jit
def jitted(x: Any) -> Any:
    return x * IN_JIT


@entry(put_global("IN_JIT"))
def a_global_of_a_jitted_function(x: Any) -> Any:
    return jitted(x)


def helper(x: Any) -> Any:
    return x * IN_HELPER


@entry(put_global("IN_HELPER"))
def a_global_of_a_function_it_calls(x: Any) -> Any:
    return functools.reduce(lambda value, _: helper(value), range(1), x)


@entry(lambda number: LISTED.__setitem__(0, number))
def an_element_of_a_list(x: Any) -> Any:
    return x * LISTED[0]


@entry(lambda number: NAMED["factor"].update({"is": number}))
def an_entry_of_a_table(x: Any) -> Any:
    return x * NAMED["factor"]["is"]


@entry(lambda number: setattr(an_attribute_of_a_function, "factor", number))
def an_attribute_of_a_function(x: Any) -> Any:
    return x * an_attribute_of_a_function.factor


def _with_default(x: Any, factor: int = 1) -> Any:
    return x * factor


@entry(lambda number: setattr(_with_default, "__defaults__", (number,)))
def a_default(x: Any) -> Any:
    return _with_default(x)


def _with_keyword(x: Any, *, factor: int = 1) -> Any:
    return x * factor


@entry(lambda number: setattr(_with_keyword, "__kwdefaults__", {"factor": number}))
def a_default_of_a_keyword(x: Any) -> Any:
    return _with_keyword(x)


def _closure() -> tuple[Function, Put]:
    factor = 1

    def a_closure(x: Any) -> Any:
        return x * factor

    def put(number: int) -> None:
        nonlocal factor
        factor = number

    return a_closure, put


TABLE["a_closure"] = _closure()


def times_two(x: Any) -> Any:
    return x * 2


def times_three(x: Any) -> Any:
    return x * 3


def chosen(x: Any) -> Any:
    return x


@entry(lambda number: globals().update(chosen=times_two if number == 2 else times_three))
def another_function(x: Any) -> Any:
    return chosen(x)


@entry(lambda number: setattr(chosen_code, "__code__", (times_two if number == 2 else times_three).__code__))
def another_code(x: Any) -> Any:
    return chosen_code(x)


def chosen_code(x: Any) -> Any:
    return x


@entry(lambda number: setattr(math, "factor", number))
def a_number_in_a_released_module(x: Any) -> Any:
    return x * math.factor  # type: ignore[attr-defined]


@entry(lambda number: setattr(jnp, "pi", number))
def a_constant_of_a_released_module(x: Any) -> Any:
    return x * jnp.pi


@entry(lambda number: setattr(nn, "relu6", lambda x: x * number))
def a_function_put_into_a_released_module(x: Any) -> Any:
    return nn.relu6(x)


def _pretends(number: int) -> None:
    @functools.wraps(jnp.arctanh)
    def function(x: Any) -> Any:
        return x * number

    jnp.arctanh = function


@entry(_pretends)
def a_function_that_says_it_is_the_modules_own(x: Any) -> Any:
    return jnp.arctanh(x)


def _pretends_jitted(number: int) -> None:
    @functools.wraps(jnp.arccosh)
    def function(x: Any) -> Any:
        return x * number

    jnp.arccosh = jax.jit(function)


@entry(_pretends_jitted)
def a_jitted_function_that_says_so(x: Any) -> Any:
    return jnp.arccosh(x)


@entry(
    lambda number: (
        setattr(nn.mish, "__wrapped__", None) or setattr(nn, "mish", times_two if number == 2 else times_three)
    )
)
def a_function_in_the_place_of_another(x: Any) -> Any:
    return nn.mish(x)


@entry(lambda number: setattr(nn.soft_sign, "factor", number))
def an_attribute_of_a_released_function(x: Any) -> Any:
    return x * nn.soft_sign.factor  # type: ignore[attr-defined]


@entry(lambda number: setattr(jax.ShapeDtypeStruct, "factor", number))
def an_attribute_of_a_released_class(x: Any) -> Any:
    return x * jax.ShapeDtypeStruct.factor  # type: ignore[attr-defined]


FOLLOWED = tuple(TABLE)
"""Those above are known by what they read, or by nothing."""


# Values that cannot be followed, in objects that are seen to change.
class Settings:
    factor = 1


class Kind(enum.IntEnum):
    TWO = 2
    THREE = 3


@dataclasses.dataclass
class Point:
    factor: int = 1


settings, space, point, kind = Settings(), types.SimpleNamespace(factor=1), Point(), Kind.TWO
module = types.ModuleType("users_module")
vars(module)["factor"] = 1


@entry(lambda number: setattr(settings, "factor", number))
def an_attribute_of_an_object(x: Any) -> Any:
    return x * settings.factor


@entry(lambda number: setattr(Settings, "other", number))
def an_attribute_of_a_class(x: Any) -> Any:
    return x * Settings.other  # type: ignore[attr-defined]


@entry(lambda number: setattr(space, "factor", number))
def an_attribute_of_a_namespace(x: Any) -> Any:
    return x * space.factor


@entry(lambda number: setattr(point, "factor", number))
def a_field(x: Any) -> Any:
    return x * point.factor


@entry(lambda number: globals().update(kind=Kind(number)))
def a_member_of_an_enumeration(x: Any) -> Any:
    return x * int(kind)


@entry(lambda number: setattr(module, "factor", number))
def an_attribute_of_a_module(x: Any) -> Any:
    return x * module.factor  # type: ignore[attr-defined]


SEEN = tuple(name for name in TABLE if name not in FOLLOWED)


# What only a call can find out.
@entry(lambda number: os.environ.update(FACTOR=str(number)))
def environment(x: Any) -> Any:
    return x * int(os.environ["FACTOR"])


@entry(lambda number: os.environ.update(FACTOR_2=str(number)))
def environment_by_a_function(x: Any) -> Any:
    return x * int(os.getenv("FACTOR_2", "1"))


@entry(lambda number: sys.argv.append(str(number)))
def command_line(x: Any) -> Any:
    return x * int(sys.argv[-1])


@entry(lambda number: FILE.write_text(str(number)) and None)
def file_by_pathlib(x: Any) -> Any:
    return x * int(FILE.read_text())


@entry(lambda number: FILE.with_suffix(".json").write_text(str(number)) and None)
def file_by_open(x: Any) -> Any:
    with open(FILE.with_suffix(".json")) as file:
        return x * json.load(file)


@entry(lambda number: jnp.save(FILE.with_suffix(".npy"), jnp.asarray(number)))
def file_by_jax(x: Any) -> Any:
    return x * jnp.load(FILE.with_suffix(".npy")).astype(x.dtype)


@entry(lambda number: torch.set_default_dtype(torch.float32 if number == 2 else torch.float64))
def default_element_type(x: Any) -> Any:
    return x * (2 if torch.get_default_dtype() == torch.float32 else 3)


@entry(lambda number: torch.set_default_dtype(torch.float32 if number == 2 else torch.float64))
def element_type_of_a_tensor(x: Any) -> Any:
    return x * (torch.ones(()).element_size() // 4 + 1)


@entry(lambda number: jax.config.update("jax_default_matmul_precision", "float32" if number == 2 else "bfloat16"))
def a_setting_of_jax(x: Any) -> Any:
    return x * (2 if jax.config.jax_default_matmul_precision == "float32" else 3)


@entry(lambda number: setattr(sys, "factor", number))
def imported_inside(x: Any) -> Any:
    import sys as system

    return x * system.factor  # type: ignore[attr-defined]


@entry(put_global("BY_NAME"))
def by_its_name(x: Any) -> Any:
    return x * globals()["BY_NAME"]


@entry(put_global("BY_ATTRIBUTE"))
def by_an_attribute_of_the_function(x: Any) -> Any:
    return x * by_an_attribute_of_the_function.__globals__["BY_ATTRIBUTE"]


@entry(lambda number: setattr(math, "by_getattr", number))
def by_getattr(x: Any) -> Any:
    return x * getattr(math, "by_" + "getattr")


VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("VARIABLE")


@entry(lambda number: VARIABLE.set(number) and None)
def context_variable(x: Any) -> Any:
    return x * VARIABLE.get()


PAIR = (types.SimpleNamespace(factor=1), 5)


@entry(lambda number: setattr(PAIR[0], "factor", number))
def inside_of_a_tuple(x: Any) -> Any:
    return x * PAIR[0].factor


def _replaced(function: Any, number: int) -> None:
    function.__code__ = (times_two if number == 2 else times_three).__code__


@entry(lambda number: _replaced(nn.hard_tanh.__wrapped__, number))
def another_code_of_a_released_function(x: Any) -> Any:
    return nn.hard_tanh(x)


if __name__ == "__main__":
    # python settable.py FOLDER NUMBER: each function as a kernel, found in a cache or not; prints what came out.
    import tpu_lowering

    folder, number = sys.argv[1], int(sys.argv[2])
    results: dict[str, float] = {}
    for name, (function, put) in TABLE.items():
        before = torch.get_default_dtype()
        put(number)

        torch.compiler.reset()
        made = types.FunctionType(function.__code__, function.__globals__, name, None, function.__closure__)
        made.__annotations__ = {"x": torch.Tensor, "return": torch.Tensor}
        made.__dict__.update(function.__dict__)
        operator = tpu_lowering.kernel_op(f"settable::{name}")(made)
        run = torch.compile(
            lambda x, operator=operator: operator(x) + 0,
            backend="helion_tpu",
            fullgraph=True,
            options={"cache": folder},
        )
        with torch.inference_mode():
            results[name] = float(run(torch.ones(3, dtype=torch.float32))[0])
        torch.set_default_dtype(before)
        jax.config.update("jax_default_matmul_precision", None)
    print(json.dumps(results))
