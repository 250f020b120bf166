"""Mistakes in options, devices and meshes."""

from __future__ import annotations

import os
import pathlib

import torch
from expecttest import assert_expected_inline as inline

from tests.refusals.remedies import Result, X, compiled, double, mistake, refused, says
from tpu_lowering.options import Options


@mistake
def a_misspelt_option() -> Result:
    inline(
        refused(double, X, verfy=True),
        """\
[TL101] unknown option: 'verfy'
  why  expected one of verify, poison, passes, fallback, cpu_kernels, random, fuse, tune, tune_seconds, dump, cache, cache_bytes, buckets, device, mesh, shardings, got 'verfy'
  fix  did you mean 'verify'? Write options={'verify': ...}""",
    )
    return compiled(double, verify=True)(X), double(X)


@mistake
def a_number_for_a_flag() -> Result:
    inline(
        refused(double, X, verify=1),
        """\
[TL102] option has the wrong type or value: 'verify'
  why  expected a bool, got 1
  fix  pass a bool as options['verify']""",
    )
    return compiled(double, verify=True)(X), double(X)


@mistake
def a_choice_that_there_is_not() -> Result:
    inline(
        refused(double, X, fallback="cuda"),
        """\
[TL102] option has the wrong type or value: 'fallback'
  why  expected one of 'error', 'eager', got 'cuda'
  fix  pass one of 'error', 'eager' as options['fallback']""",
    )
    return compiled(double, fallback="eager")(X), double(X)


@mistake
def a_list_of_options() -> Result:
    inline(
        says(lambda: Options.create(["fuse"])),
        """\
[TL102] option has the wrong type or value: options
  why  expected a dictionary of options by their names, got list
  fix  pass options={'fuse': 'never'}""",
    )  # type: ignore[arg-type]
    return compiled(double, fuse="never")(X), double(X)


@mistake
def buckets_that_fall() -> Result:
    inline(
        refused(double, X, buckets=[32, 8]),
        """\
[TL102] option has the wrong type or value: 'buckets'
  why  expected 'power_of_two', a step such as 512, or a list of rising sizes such as [128, 512, 2048], got (32, 8)
  fix  pass 'power_of_two', a step such as 512, or a list of rising sizes such as [128, 512, 2048] as options['buckets']""",
    )
    function = torch.compile(double, backend="helion_tpu", dynamic=True, options={"buckets": [8, 32]})
    return [function(X), function(X[:5])], [double(X), double(X[:5])]


@mistake
def a_misspelt_pass() -> Result:
    inline(
        refused(double, X, passes="return_fresh_bufers"),
        """\
[TL113] text that is no pipeline: 'passes'
  why  expected some of the passes simplify_views, return_fresh_buffers, drop_overwritten_values, assemble_writes, drop_dead_allocations, unflatten_kernels, choose_launches, gather_first, sum_gathered, slice_first, convolve_channels, contract_heads, take_experts_as_stored, select_rows, repeat_elements, sum_intervals, fuse_attention, contract_batches, fuse_around_kernels, concatenate_in_product, merge_equal, expand_rows, fuse_rows, fuse_long_rows, compare_scattered, compute_once; got 'return_fresh_bufers'; did you mean 'return_fresh_buffers'?
  fix  python -m tpu_lowering pipeline prints the text that is the default; leave passes out of it""",
    )
    return compiled(double, passes="return_fresh_buffers")(X), double(X)


@mistake
def a_function_in_place_of_a_text() -> Result:
    inline(
        refused(double, X, passes=double),
        """\
[TL102] option has the wrong type or value: 'passes'
  why  expected True, False, or names of passes separated by commas, got the function double
  fix  pass True, False, or names of passes separated by commas as options['passes']""",
    )
    return compiled(double, passes=False)(X), double(X)


@mistake
def a_device_that_is_not_there() -> Result:
    inline(
        refused(double, X, device="cpu:99"),
        """\
[TL104] device has no runtime: JAX device 'cpu:99'
  why  expected one of cpu:0, got 'cpu:99'
  fix  choose one of them, or make JAX find the device: install its plugin (libtpu for a TPU), and let JAX_PLATFORMS name the platform; XLA_FLAGS=--xla_force_host_platform_device_count=N gives N CPU devices""",
    )
    return compiled(double, device="cpu:0")(X), double(X)


@mistake
def a_device_without_a_colon() -> Result:
    inline(
        refused(double, X, device="cpu 0"),
        """\
[TL102] option has the wrong type or value: 'device'
  why  expected a JAX platform and the number of a device, such as 'tpu:0' or 'cpu:1', got 'cpu 0'
  fix  pass a JAX platform and the number of a device, such as 'tpu:0' or 'cpu:1' as options['device']""",
    )
    return compiled(double, device="cpu:0")(X), double(X)


@mistake
def tensors_on_two_devices() -> Result:
    def both(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, y + 1

    inline(
        refused(both, X, X.to("meta")),
        """\
[TL103] tensors on more than one device: cpu, meta
  why  expected all tensors on one device, got cpu and meta
  fix  move the model and its inputs to one device with .to(device)""",
    )
    return compiled(both)(X, X.to("cpu")), both(X, X)


@mistake
def a_device_without_a_runtime() -> Result:
    inline(
        refused(double, X.to("meta")),
        """\
[TL104] device has no runtime: meta
  why  expected tensors on a device with a runtime (cpu, tpu, xla), got meta
  fix  move the model and its inputs to the CPU with .to('cpu')""",
    )
    return compiled(double)(torch.ones_like(X.to("meta"), device="cpu")), double(torch.ones_like(X))


@mistake
def a_dump_below_a_file() -> Result:
    pathlib.Path("notes.txt").write_text("in the way")
    inline(
        refused(double, X, dump="notes.txt/dump"),
        """\
[TL102] option has the wrong type or value: 'dump'
  why  expected a folder that can be written to, got 'notes.txt/dump': Not a directory
  fix  pass another folder as options['dump']""",
    )
    return compiled(double, dump="dumped")(X), double(X)


@mistake
def a_cache_that_others_write_to() -> Result:
    os.mkdir("shared")
    os.chmod("shared", 0o777)
    inline(
        refused(double, X, cache="shared"),
        """\
[TL116] cache folder that others can write to: shared
  why  expected a folder that its user alone can write to, as its programs are run as they are found, got mode 0777
  fix  name a folder that is not there yet, or, if all in it is yours: chmod go-w shared""",
    )
    os.system("chmod go-w shared")
    return compiled(double, cache="shared")(X), double(X)


@mistake
def shardings_without_a_mesh() -> Result:
    inline(
        refused(double, X, shardings={"x": ("data",)}),
        """\
[TL102] option has the wrong type or value: 'mesh'
  why  expected a dictionary from the names of axes to their sizes, such as {'data': 4, 'model': 2}, because there are shardings, got {}
  fix  pass a dictionary from the names of axes to their sizes, such as {'data': 4, 'model': 2}, because there are shardings as options['mesh']""",
    )
    return compiled(double, mesh={"data": 1}, shardings={"x": ("data",)})(X), double(X)


@mistake
def an_axis_that_the_mesh_has_not() -> Result:
    inline(
        refused(double, X, mesh={"data": 1}, shardings={"x": ("dta",)}),
        """\
[TL711] axis that the mesh does not have: 'dta', of options['shardings']['x']
  why  expected one of the axes 'data' of options['mesh'], got 'dta'
  fix  name one of them, or give the mesh such an axis""",
    )
    return compiled(double, mesh={"data": 1}, shardings={"x": ("data",)})(X), double(X)


@mistake
def a_sharding_of_a_name_that_nothing_has() -> Result:
    inline(
        refused(double, X, mesh={"data": 1}, shardings={"y": ("data",)}),
        """\
[TL714] name in shardings that nothing has: options['shardings']['y']
  why  expected the name of a parameter, a buffer, an argument or a module of the function, got 'y'
  fix  the nearest names are 'x'; compile with fullgraph=True, so that the function is one graph""",
    )
    return compiled(double, mesh={"data": 1}, shardings={"x": ("data",)})(X), double(X)


@mistake
def a_mesh_without_names() -> Result:
    inline(
        refused(double, X, mesh=[1]),
        """\
[TL102] option has the wrong type or value: 'mesh'
  why  expected a dictionary from the names of axes to their sizes, such as {'data': 4, 'model': 2}, got [1]
  fix  pass a dictionary from the names of axes to their sizes, such as {'data': 4, 'model': 2} as options['mesh']""",
    )
    return compiled(double, mesh={"data": 1})(X), double(X)


@mistake
def a_mesh_with_a_numbered_device() -> Result:
    inline(
        refused(double, X, mesh={"data": 1}, device="cpu:0"),
        """\
[TL102] option has the wrong type or value: 'device'
  why  expected a JAX platform, such as 'tpu' or 'cpu', together with a mesh, got 'cpu:0'
  fix  pass a JAX platform, such as 'tpu' or 'cpu', together with a mesh as options['device']""",
    )
    return compiled(double, mesh={"data": 1}, device="cpu")(X), double(X)


@mistake
def a_mesh_that_is_larger_than_the_machine() -> Result:
    inline(
        refused(double, X, mesh={"data": 512}),
        """\
[TL104] device has no runtime: a mesh of data 512
  why  expected 512 devices of JAX's, got 1
  fix  give the mesh as many devices as there are; XLA_FLAGS=--xla_force_host_platform_device_count=N gives N CPU devices, and jax.distributed.initialize() those of other processes""",
    )
    return compiled(double, mesh={"data": 1})(X), double(X)


@mistake
def a_mesh_with_eager_parts() -> Result:
    inline(
        refused(double, X, mesh={"data": 1}, fallback="eager"),
        """\
[TL102] option has the wrong type or value: 'fallback'
  why  expected 'error', because a program on a mesh is one graph, got 'eager'
  fix  pass 'error', because a program on a mesh is one graph as options['fallback']""",
    )
    return compiled(double, mesh={"data": 1}, fallback="error")(X), double(X)
