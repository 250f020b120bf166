"""Programs on torch_tpu's device: what is registered and launched, and what libtpu makes of it for a tpu7x."""

from __future__ import annotations

import re

from tests.runtime.torch_tpu.tpu_alone import DEVICE, run
from tpu_lowering.ir.chips import CHIPS

DECODE = """
def step(q, keys, values, position):
    keys.index_copy_(1, position, (q * 0.5)[:, None])
    values.index_copy_(1, position, (q + 1)[:, None])
    seen = torch.arange(keys.shape[1], device=q.device) <= position
    scores = torch.where(seen, (keys @ q[:, :, None])[..., 0] * 128**-0.5, float("-inf"))
    result = torch.softmax(scores, -1)[:, None] @ values
    position.add_(1)
    return result[:, 0]

state = [empty(8, 128), empty(8, 2048, 128), empty(8, 2048, 128), empty(1, dtype=torch.int32)]
"""

# What libtpu makes of the StableHLO that was registered.
CHIP = """
from tpu_lowering.codegen.source import Source
from tpu_lowering.runtime.aot import compiler
from tpu_lowering.runtime.aot.program import TpuProgram
from tpu_lowering.ir import chips

def on_the_chip(program):
    exported, target = program.registered.exported, chips.find("tpu7x")
    assert registered[-1][2] == exported.mlir_module_serialized
    artifact = bytes(exported.serialize())
    made = compiler.compile_artifact(artifact, target, program.registered.donated, Source("", "", {}))
    chip = TpuProgram.of("p", target, made, artifact)
    return {
        "operations": [operation.opcode for operation in chip.entry_operations],
        "read": chip.hbm_bytes_read, "written": chip.hbm_bytes_written, "aliased": chip.aliased_bytes,
        "temporary": chip.temporary_bytes, "hlo": chip.hlo,
    }
"""


def test_a_destination_passing_kernel() -> None:
    """One launch that donates nothing; on the chip one kernel that reads its input and writes its result."""
    found = run(
        CHIP,
        """
        from bench.kernels import KERNELS
        (case,) = (case for case in KERNELS if case.name == "exp")
        x = empty(2048, 4096)
        first = compiled(case.model)
        y, again = first(x), first(x)
        name, key, module = registered[0]
        done(
            result=[str(y.device), list(y.shape), list(y.stride()), str(y.dtype)],
            registered=len(registered), known=tpu_torch_pallas.lookup_custom_kernel(name, key),
            launches=[[donated, inputs] for _, _, donated, inputs in launches],
            same=all((n, k) == (name, key) for n, k, _, _ in launches),
            aliases=any(mark in programs[0].registered.exported.mlir_module()
                        for mark in ("tf.aliasing_output", "jax.buffer_donor", "output_operand_aliases = [#")),
            chip=on_the_chip(programs[0]),
        )
        """,
    )
    size = 2048 * 4096 * 4
    assert found["result"] == ["tpu:0", [2048, 4096], [4096, 1], "torch.float32"]
    assert found["registered"] == 1 and found["known"] and found["same"]
    assert found["launches"] == [[[], [[2048, 4096]]]] * 2
    assert not found["aliases"]
    chip = found["chip"]
    assert chip["operations"] == ["custom-call:tpu_custom_call"]
    assert (chip["read"], chip["written"], chip["aliased"]) == (size, size, 0)


def test_a_decode_step_updates_its_caches_in_place() -> None:
    """What is donated is what is mutated; on the chip no cache is copied, and each new value is in its old buffer."""
    found = run(
        DECODE,
        CHIP,
        """
        run = compiled(step)
        results = [run(*state) for _ in range(3)]
        done(
            registered=len(registered), donated=[donated for _, _, donated, _ in launches],
            inputs=launches[0][3], devices=sorted({str(t.device) for t in (*results, *state)}),
            chip=on_the_chip(programs[0]),
        )
        """,
    )
    cache = 8 * 2048 * 128 * 4
    assert found["registered"] == 1
    assert found["devices"] == ["tpu:0"]
    assert len(found["donated"]) == 3 and found["donated"][0] == found["donated"][2]
    donated = [found["inputs"][at] for at in found["donated"][0]]
    assert sorted(donated) == [[1], [8, 2048, 128], [8, 2048, 128]]
    chip = found["chip"]
    small = 128 * 1024
    assert 2 * cache <= chip["aliased"] < 2 * cache + small  # the number takes a tile of its own
    assert 2 * cache <= chip["read"] < 2 * cache + small and chip["written"] < small and chip["temporary"] < small
    moved = re.findall(r"= f32\[8,2048,128\]\S* (copy|copy-start|broadcast)\(", chip["hlo"])
    assert chip["hlo"].count("f32[8,2048,128]") > 2 and not moved


def test_a_result_like_a_mutated_argument_does_not_take_its_buffer() -> None:
    found = run(
        CHIP,
        """
        def model(state, x):
            state.mul_(0.5).add_(x)
            return state * 2

        compiled(model)(empty(1024, 1024), empty(1024, 1024))
        done(module=programs[0].registered.exported.mlir_module(), chip=on_the_chip(programs[0]))
        """,
    )
    size = 1024 * 1024 * 4
    assert "%arg0: tensor<1024x1024xf32> {tf.aliasing_output = 0 : i32}" in found["module"]
    assert found["module"].count("tf.aliasing_output") == 1
    assert found["chip"]["aliased"] == size
    assert (found["chip"]["read"], found["chip"]["written"]) == (2 * size, 2 * size)


def test_a_call_is_one_launch_and_nothing_else() -> None:
    """With torch_tpu computing each operation at once, any other one would start libtpu and stop the process."""
    found = run(
        DECODE,
        """
        def launched(*_, inputs, output_shapes, donate_argnums):
            return [torch.empty_like(result) for result in output_shapes]

        tpu_torch_pallas.call_custom_kernel = launched
        results = [compiled(step)(*state) for _ in range(2)]
        done(mode=str(modes._get_eager_mode()), shape=list(results[1].shape))
        """,
        prelude=DEVICE,
    )
    assert found == {"mode": "_EagerMode.DEFER_NEVER", "shape": [8, 128]}


def test_views_at_the_edge() -> None:
    """Arguments that are views, a mutated one of them too, and results with eager's strides and shared memory."""
    found = run(
        """
        def model(turned, part, state):
            state.add_(1)
            y = turned * 2 + part
            return y, y.t(), (y + 1)[1:], turned.permute(1, 0) * state

        def arguments(empty):
            base = empty(64, 4)
            return empty(8, 4).t(), empty(16, 8)[2:6], base[8:16], base

        def places(results):
            return [[list(t.shape), list(t.stride())] for t in results]

        *given, base = arguments(empty)
        results = compiled(model)(*given)
        expected = model(*arguments(torch.empty)[:3])
        shared = [a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() for a, b in (results[:2], results[1:3])]
        done(
            same=places(results) == places(expected), places=places(results), shared=shared,
            inputs=launches[0][3], donated=launches[0][2], base=[list(base.shape), base.untyped_storage().nbytes()],
        )
        """
    )
    assert found["same"], found["places"]
    assert found["places"][:2] == [[[4, 8], [1, 4]], [[8, 4], [4, 1]]]
    assert found["shared"] == [True, False]
    assert found["inputs"] == [[8, 4], [4, 8], [4, 8]] and found["donated"] == [0]
    assert found["base"] == [[64, 4], 1024]


def test_kernels_in_eager_torch_and_graphs_without_arguments() -> None:
    found = run(
        """
        import jax
        from jax.experimental import pallas as pl

        def double(x_ref, out_ref):
            out_ref[...] = x_ref[...] * 2

        @tpu_lowering.kernel_op("tests_tpu::double_into", mutates_args=("out",))
        def double_into(x: torch.Tensor, out: torch.Tensor) -> None:
            return pl.pallas_call(double, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

        out = empty(8, 128)
        torch.ops.tests_tpu.double_into(empty(8, 128), out)
        made = compiled(lambda: torch.arange(5, device="tpu") * 2)()
        done(launches=[[name, donated, inputs] for name, _, donated, inputs in launches], made=str(made.device))
        """
    )
    assert found["made"] == "tpu:0"
    assert found["launches"][0] == ["tests_tpu_double_into", [], [[8, 128], [8, 128]]]
    assert found["launches"][1][1:] == [[], []]


def test_models_and_what_they_bring_from_the_cpu() -> None:
    """Constants are moved once; numbers from the CPU and the key of random numbers with each call."""
    found = run(
        """
        from tpu_lowering.demo import decoder

        def moved_by(function, *arguments):
            counted = []
            run = compiled(function)
            for _ in range(3):
                transfers.clear()
                run(*arguments)
                counted.append(len(transfers))
            return counted

        x, table = empty(4, 128), torch.arange(128.0)
        model = decoder(kernels=True).to_empty(device="tpu")
        run = compiled(lambda tokens: model(tokens, use_cache=False).logits)
        logits = run(empty(1, 128, dtype=torch.int64))
        done(
            constant=moved_by(lambda x: x + torch.tensor([1.0] * 128, device=x.device), x),
            number=moved_by(lambda x, n: x * n, x, torch.tensor(3.0)),
            dropout=moved_by(lambda x: torch.nn.functional.dropout(x, 0.5), x),
            logits=[str(logits.device), list(logits.shape[:2])],
            kernels=programs[0].registered.exported.mlir_module().count("@tpu_custom_call("),
            launches=[name for name, *_ in launches].count(programs[0].program.name),
        )
        """
    )
    assert found["constant"] == [1, 0, 0]
    assert found["number"] == found["dropout"] == [1, 1, 1]
    assert found["logits"] == ["tpu:0", [1, 128]]
    assert found["kernels"] > 0 and found["launches"] == 1


def test_attention_is_whatever_operator_torch_tpu_picks() -> None:
    """torch_tpu's choice for ``scaled_dot_product_attention``, and its own form of ``flex_attention``."""
    found = run(
        CHIP,
        """
        from torch.nn.attention.flex_attention import flex_attention

        def model(q, k, v):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        q, k = empty(1, 8, 128, 64), empty(1, 2, 128, 64)
        result, other = compiled(model)(q, k, k), compiled(flex_attention)(q, q, q)
        programs.pop()
        registered.pop()
        done(result=list(result.shape), other=list(other.shape), chip=on_the_chip(programs[0]))
        """,
    )
    assert found["result"] == found["other"] == [1, 8, 128, 64]
    assert found["chip"]["operations"]


def test_refusals() -> None:
    found = run(
        """
        x = empty(3)
        mixed = refusal(lambda x, y: (x * 2, y * 2), x, torch.ones(3))
        result = refusal(lambda x: (x * 2, torch.ones(3)), x)
        option = refusal(lambda x: x + 1, x, device="cpu:0")
        tpu_tensors.chip.cache_clear()
        hardware.get_tpu_device_name = lambda: "TPU"
        done(mixed=mixed, result=result, option=option, chip=refusal(lambda x: x + 1, x))
        """
    )
    assert found["mixed"] == "\n".join(
        (
            "[TL103] tensors on more than one device: cpu, tpu:0",
            "  why  expected all tensors on one device, got cpu and tpu:0",
            "  fix  move the model and its inputs to one device with .to(device)",
        )
    )
    lines = found["result"].splitlines()
    assert lines[0].startswith("[TL103] tensors on more than one device: result ")
    assert lines[-2] == "  why  expected all results on the device of the arguments (tpu), got one on cpu"
    assert found["option"] == "\n".join(
        (
            "[TL103] tensors on more than one device: options['device'] = 'cpu:0'",
            "  why  expected tensors on the CPU, which options['device'] moves to a JAX device, got one on tpu:0",
            "  fix  leave options['device'] out: the program runs where its tensors are",
        )
    )
    assert found["chip"] == "\n".join(
        (
            "[TL104] device has no runtime: torch_tpu on TPU",
            f"  why  expected this machine to have one of {', '.join(chip.name for chip in CHIPS)}, got TPU",
            "  fix  run it on a machine that has one; without one, compile it with tpu_lowering.aot_compile",
        )
    )


def test_names_of_chips_are_torch_tpus() -> None:
    """Each TPU that torch_tpu knows is one of ours, and no two are the same."""
    found = run(
        """
        from tpu_lowering.ir import chips
        found = [chips.of_device(name, "torch_tpu").name for name in hardware._PCI_DEVICE_ID_TO_NAME.values()]
        done(found=sorted(found), ours=sorted(chip.name for chip in chips.CHIPS))
        """,
    )
    assert found["found"] == found["ours"]
