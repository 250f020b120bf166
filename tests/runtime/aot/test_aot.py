"""Compiling for TPUs that are not there, with libtpu: figures, donation, refusals, files."""

from __future__ import annotations

import json
import pathlib
import zipfile

import helion
import helion.language as hl
import jax
import jax.numpy as jnp
import pytest
import torch
from jax.experimental import pallas as pl

import tpu_lowering
from tpu_lowering.ir.chips import CHIPS
from tpu_lowering.runtime.aot import compiler

MIB = 1 << 20


@helion.kernel(config=helion.Config(block_sizes=[256, 1024]), static_shapes=True, backend="pallas")
def exp_into(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size()):
        out[tile] = torch.exp(x[tile])


@helion.kernel(config=helion.Config(block_sizes=[8192, 8192]), static_shapes=True, backend="pallas")
def exp_in_one_block(x: torch.Tensor, out: torch.Tensor) -> None:
    for tile in hl.tile(x.size()):
        out[tile] = torch.exp(x[tile])


@tpu_lowering.kernel_op("aot_tests::narrow_blocks", mutates_args=("out",))
def narrow_blocks(x: torch.Tensor, out: torch.Tensor) -> None:
    def body(x_ref, _, out_ref):
        out_ref[...] = x_ref[...] + 1

    block = pl.BlockSpec((3, 100), lambda i, j: (i, j))
    return pl.pallas_call(
        body,
        grid=(8, 4),
        in_specs=[block, block],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(out.shape, jnp.float32),
        input_output_aliases={1: 0},
    )(x, out)


def model(x):
    out = torch.empty_like(x)
    exp_into(x, out)
    return out


X = torch.empty(1024, 1024)  # 4 MiB
NAMES = [chip.name for chip in CHIPS]


def test_the_kernel_is_all_there_is() -> None:
    program = tpu_lowering.aot_compile(model, (X,), target="tpu7x")
    assert [o.opcode for o in program.entry_operations] == ["custom-call:tpu_custom_call"]
    assert program.entry_operations[0].bytes_source == "dma schedule"
    assert (program.hbm_bytes_read, program.hbm_bytes_written) == (4 * MIB, 4 * MIB)
    assert program.peak_bytes == 8 * MIB
    assert program.vmem_bytes.keys() == {program.entry_operations[0].name}
    assert program.schedule_cycles is not None
    assert program.bandwidth_bound_seconds == pytest.approx(8 * MIB / 3.7e12)
    assert "broadcast" not in program.hlo.partition("\nENTRY ")[2]


def test_without_passes_the_aliased_operand_is_fetched() -> None:
    program = tpu_lowering.aot_compile(model, (X,), target="tpu7x", options={"passes": False})
    assert (program.hbm_bytes_read, program.hbm_bytes_written) == (8 * MIB, 4 * MIB)


@pytest.mark.sweep
@pytest.mark.parametrize("target", [*NAMES, "v5e:2x4"])
def test_every_target_compiles(target: str) -> None:
    program = tpu_lowering.aot_compile(model, (X,), target=target)
    assert program.hbm_bytes >= 8 * MIB
    assert [o.opcode for o in program.entry_operations if o.hbm_bytes_written] == ["custom-call:tpu_custom_call"]


def test_as_written_moves_twice_the_bytes_in_two_programs() -> None:
    chip = tpu_lowering.explain(model, X, target="tpu7x").chip
    assert chip is not None
    assert chip.programs == (2, 1)
    assert chip.device_operations == (2, 1)
    assert [round(value / MIB) for value in chip.hbm_bytes] == [16, 8]
    assert "tpu7x, as libtpu compiles it" in str(tpu_lowering.explain(model, X, target="tpu7x"))


def step(cache, new):
    cache[:, 5] = new
    return (cache * 2).sum()


@pytest.mark.parametrize(("donate", "aliased"), [(True, 256 * MIB), (False, 0)])
def test_a_donated_cache_is_updated_in_place(donate: bool, aliased: int) -> None:
    """A cache larger than VMEM: no copy of it where it is donated, one where it is not."""
    given = (torch.empty(16, 4096, 1024), torch.empty(16, 1024))
    program = tpu_lowering.aot_compile(step, given, target="tpu7x", donate=donate)
    assert program.aliased_bytes == aliased
    copies = [o for o in program.entry_operations if o.opcode.startswith("copy") and o.hbm_bytes_written == 256 * MIB]
    assert len(copies) == (0 if donate else 1)


def refusal(function, *args, target: str) -> str:
    with pytest.raises(Exception) as caught:
        tpu_lowering.aot_compile(function, args, target=target)
    error = getattr(caught.value, "inner_exception", caught.value)
    assert isinstance(error, tpu_lowering.TpuLoweringError)
    return str(error)


def one_block(x):
    out = torch.empty_like(x)
    exp_in_one_block(x, out)
    return out


def narrow(x):
    out = torch.empty_like(x)
    narrow_blocks(x, out)
    return out


def test_a_gather_on_the_sparse_core_is_read_from_the_dump() -> None:
    """XLA cannot print this program; its dump has the text."""
    table, rows = torch.empty(100_000, 128), torch.empty(65_536, dtype=torch.int32)
    program = tpu_lowering.aot_compile(torch.nn.functional.embedding, (rows, table), target="v6e")
    assert "sparsecore" in program.hlo
    (gather,) = (operation for operation in program.entry_operations if operation.opcode == "async-update")
    assert gather.hbm_bytes_written == 65_536 * 128 * 4


def test_too_much_vmem_is_refused() -> None:
    assert refusal(one_block, torch.empty(8192, 8192), target="v5e") == (
        "[TL601] more VMEM needed than there is: exp_in_one_block\n"
        "  at   test_aot.py:121 in one_block: exp_in_one_block(x, out)\n"
        "  why  expected at most 128.0 MiB of VMEM on v5e, got 256.0 MiB\n"
        "  fix  choose smaller block sizes, or fewer or narrower operands in one block"
    )


def test_blocks_that_fit_no_tile_are_refused() -> None:
    text = refusal(narrow, torch.empty(24, 400), target="tpu7x")
    assert text.startswith("[TL602] block shape does not fit the chip's tiles: aot_tests::narrow_blocks\n")
    assert "expected blocks whose last two dimensions are multiples of 8 and 128, or whole, got " in text


def test_float64_is_refused() -> None:
    assert refusal(model, torch.empty(64, 128, dtype=torch.float64), target="tpu7x") == (
        "[TL603] dtype is not supported on the chip: argument 'x' of exp_into\n"
        "  at   test_aot.py:54 in model: exp_into(x, out)\n"
        "  why  expected element types of at most 32 bits on tpu7x, got f64[64, 128]\n"
        "  fix  convert it before the kernel: x.float() for float64, x.int() for int64"
    )


def test_an_unknown_target_is_refused() -> None:
    assert refusal(model, X, target="v99") == (
        "[TL107] unknown target: 'v99'\n"
        f"  why  expected one of {', '.join(NAMES)}, or a topology such as 'v5e:2x4', got 'v99'\n"
        '  fix  write target="tpu7x"'
    )


def test_without_libtpu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    assert refusal(model, X, target="tpu7x") == (
        "[TL108] TPU compiler not installed: libtpu\n"
        "  why  expected the package libtpu, which holds the TPU compiler and needs no TPU, got none\n"
        "  fix  pip install libtpu==0.0.52"
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[tpu_lowering.TpuProgram, pathlib.Path]:
    program = tpu_lowering.aot_compile(lambda x: torch.exp(x) + 1, (torch.empty(64, 128),), target="v5e")
    path = tmp_path_factory.mktemp("aot") / "program.tpu"
    program.save(path)
    return program, path


def test_a_saved_program_comes_back(saved: tuple[tpu_lowering.TpuProgram, pathlib.Path]) -> None:
    program, path = saved
    loaded = tpu_lowering.load(path)
    for name in ("entry_operations", "hlo", "artifact", "executable", "chip", "peak_bytes"):
        assert getattr(loaded, name) == getattr(program, name), name
    exported = jax.export.deserialize(bytearray(loaded.artifact))
    assert exported.platforms == ("tpu",)
    assert [aval.shape for aval in exported.out_avals] == [(64, 128)]


def rewritten(path: pathlib.Path, to: pathlib.Path, change) -> pathlib.Path:
    """A copy of a saved program with its members changed, and its digests left as they were."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(to, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return to


def test_damaged_and_foreign_files_are_refused(
    saved: tuple[tpu_lowering.TpuProgram, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    _, path = saved

    def other_versions(members):
        manifest = json.loads(members["manifest.json"])
        members["manifest.json"] = json.dumps({**manifest, "versions": {"jax": "0.0.1"}}).encode()

    def other_artifact(members):
        members["program.jax_export"] = b"x" + members["program.jax_export"][1:]

    (tmp_path / "text").write_text("not a program")
    (tmp_path / "half").write_bytes(path.read_bytes()[:-100])
    cases = {
        "text": tmp_path / "text",
        "half": tmp_path / "half",
        "missing": tmp_path / "missing",
        "digest": rewritten(path, tmp_path / "digest", other_artifact),
        "versions": rewritten(path, tmp_path / "versions", other_versions),
        "no manifest": rewritten(path, tmp_path / "bare", lambda members: members.pop("manifest.json")),
    }
    for name, damaged in cases.items():
        with pytest.raises(tpu_lowering.TpuLoweringError) as caught:
            tpu_lowering.load(damaged)
        assert caught.value.code == "TL109", name


@pytest.mark.parametrize(("random", "drawn"), [("jax", ("key",)), ("torch", ("aten.bernoulli.p",))])
def test_a_model_with_dropout_takes_what_is_drawn_last(random: str, drawn: tuple[str, ...], tmp_path) -> None:
    def forward(x):
        return torch.nn.functional.dropout(x, 0.1) * 2

    program = tpu_lowering.aot_compile(forward, (X,), target="v5e", options={"random": random})
    assert program.drawn_inputs == drawn
    size = 2 * 4 if random == "jax" else 4 * MIB
    assert 4 * MIB + size <= program.argument_bytes < 4 * MIB + size + 4096
    program.save(tmp_path / "dropout.tpu")
    assert tpu_lowering.load(tmp_path / "dropout.tpu").drawn_inputs == drawn
