"""Every private name of torch, JAX, Helion, torch_xla and torch_tpu that this package uses, each with why.

Nothing else imports a private module. A name that a version lacks fails here, with a coded error that
says which package and version was found and which were tested.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpu_lowering.compat import of_torch
from tpu_lowering.compat.lookup import missing, private
from tpu_lowering.compat.of_distributed import (
    Cluster,
    c10d,
    c10d_autograd,
    coordinate_operator,
    dtensor,
    fake_group,
    group_seconds,
    is_fake_group,
    is_script_object,
    own_mesh,
    ranks_of,
    real_object,
    store,
    trace_for_all_ranks,
)
from tpu_lowering.compat.of_executables import (
    CpuArrays,
    DirectCall,
    Results,
    aliases,
    as_dlpack,
    cpu_device,
    direct_call,
    executable_bytes,
    executable_from_bytes,
    made_to_stay,
)
from tpu_lowering.compat.of_helion import (
    bind_helion,
    carried_functions,
    check_helion_calls,
    has_helion,
    helion_capture,
    helion_config,
    helion_extents,
    helion_kernel,
    helion_kernel_class,
    helion_key,
    helion_nodes,
    helion_operators,
    rebuild_helion_containers,
    register_graph_value,
)
from tpu_lowering.compat.of_jax import (
    TYPED_NUMBERS,
    Conflict,
    bind,
    block_extents,
    blocked_array,
    blocked_sizes,
    chip_scope,
    compiler_params,
    discharged,
    empty,
    enable_x64,
    flash_attention_sums,
    grid_scope,
    interpreter_conflicts,
    is_left_in_hbm,
    is_pipelined,
    jaxprs_in,
    mesh_without_devices,
    paged_attention,
    splash_attention_gradients,
    start_indices,
    trace_context,
    tracing_turn,
    uninitialised,
    unnamed,
)
from tpu_lowering.compat.of_objects import (
    can_decompose,
    function_behind,
    is_alone_in_memory,
    is_compiled_backward,
    is_static_input,
    overload_name,
    schema,
    storage_number,
    version_of,
)
from tpu_lowering.compat.of_pallas import (
    copied_references,
    declared_effects,
    is_semaphore,
    is_squeezed,
    without_scoped_references,
)
from tpu_lowering.compat.of_runtimes import (
    exports_for_now,
    function_of_xla_kernel,
    tpu_callable,
    tpu_kernels,
    tpu_name,
    xla_module,
)
from tpu_lowering.compat.of_torch import (
    ResultsOfForward,
    autograd_cache,
    below_autograd,
    bypass_autograd_cache,
    cold_dynamo,
    core_aten_decompositions,
    custom_operator,
    evaluator,
    example_sizes,
    handling,
    has_autograd_kernel,
    is_out_operator,
    keep_saved_tensors,
    largest_size,
    overload_called,
    primitives,
    python_mod,
    random_state_operators,
    recompile_reason,
    recomputed_views,
    refuse_unknown_calls,
    register_backend_once,
    registered_decompositions,
    results_of_forward,
    serializable_compiler,
    size_source,
    traced_line,
    versions_advanced,
)
from tpu_lowering.compat.operators import aten, prims

if TYPE_CHECKING:
    from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
    from torch.utils._pytree import tree_leaves, tree_map

    BackendCompilerFailed: type[Exception]
    FakeTensor: Any
    FakeTensorMode: Any
    LazyGraphModule: Any
    OutputCode: Any
    aot_autograd: Any
    aot_export_joint_simple: Any
    auto_functionalized: Any
    auto_functionalized_v2: Any
    disable_current_modes: Any
    eager_flex_attention: Any
    lazy_graph_modules: Any
    map_aggregate: Any
    map_arg: Any
    min_cut_partition: Any
    functionalize_rng_ops: Any
    no_dispatch: Any
    set_grad_enabled: Any
    with_effects: Any

__all__ = [
    "TYPED_NUMBERS",
    "BackendCompilerFailed",
    "Cluster",
    "Conflict",
    "CpuArrays",
    "DirectCall",
    "FakeTensor",
    "FakeTensorMode",
    "HigherOrderOperator",
    "OpOverload",
    "OpOverloadPacket",
    "OutputCode",
    "Results",
    "ResultsOfForward",
    "aliases",
    "aot_autograd",
    "aot_export_joint_simple",
    "as_dlpack",
    "aten",
    "auto_functionalized",
    "auto_functionalized_v2",
    "autograd_cache",
    "below_autograd",
    "bind",
    "bind_helion",
    "block_extents",
    "blocked_array",
    "blocked_sizes",
    "bypass_autograd_cache",
    "c10d",
    "c10d_autograd",
    "can_decompose",
    "carried_functions",
    "check_helion_calls",
    "chip_scope",
    "cold_dynamo",
    "compiler_params",
    "coordinate_operator",
    "copied_references",
    "core_aten_decompositions",
    "cpu_device",
    "custom_operator",
    "declared_effects",
    "direct_call",
    "disable_current_modes",
    "discharged",
    "dtensor",
    "eager_flex_attention",
    "empty",
    "enable_x64",
    "evaluator",
    "example_sizes",
    "executable_bytes",
    "executable_from_bytes",
    "exports_for_now",
    "fake_group",
    "flash_attention_sums",
    "function_behind",
    "function_of_xla_kernel",
    "functionalize_rng_ops",
    "grid_scope",
    "group_seconds",
    "handling",
    "has_autograd_kernel",
    "has_helion",
    "helion_capture",
    "helion_config",
    "helion_extents",
    "helion_kernel",
    "helion_kernel_class",
    "helion_key",
    "helion_nodes",
    "helion_operators",
    "interpreter_conflicts",
    "is_alone_in_memory",
    "is_compiled_backward",
    "is_fake_group",
    "is_left_in_hbm",
    "is_out_operator",
    "is_pipelined",
    "is_script_object",
    "is_semaphore",
    "is_squeezed",
    "is_static_input",
    "jaxprs_in",
    "keep_saved_tensors",
    "largest_size",
    "made_to_stay",
    "map_arg",
    "mesh_without_devices",
    "min_cut_partition",
    "missing",
    "overload_called",
    "overload_name",
    "own_mesh",
    "paged_attention",
    "primitives",
    "prims",
    "private",
    "python_mod",
    "random_state_operators",
    "ranks_of",
    "real_object",
    "rebuild_helion_containers",
    "recompile_reason",
    "recomputed_views",
    "refuse_unknown_calls",
    "register_backend_once",
    "register_graph_value",
    "registered_decompositions",
    "results_of_forward",
    "schema",
    "serializable_compiler",
    "set_grad_enabled",
    "size_source",
    "splash_attention_gradients",
    "start_indices",
    "storage_number",
    "store",
    "tpu_callable",
    "tpu_kernels",
    "tpu_name",
    "trace_context",
    "trace_for_all_ranks",
    "traced_line",
    "tracing_turn",
    "tree_leaves",
    "tree_map",
    "uninitialised",
    "unnamed",
    "version_of",
    "versions_advanced",
    "with_effects",
    "without_scoped_references",
    "xla_module",
]


def __getattr__(name: str) -> Any:
    """A name of ``of_torch.NAMES``, looked up at its first use."""
    if name not in of_torch.NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = private("torch", *of_torch.NAMES[name])
    return value
