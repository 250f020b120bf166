"""The comparison on the CPU: what tables and goals make of samples, how sides are timed, and one kernel for real."""

from __future__ import annotations

import pathlib
import subprocess
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from rich.console import Console

from bench import __main__ as command
from bench import zoo
from bench.cpu import SECTIONS, goals, models, plot, profiles, report, run, sides, timing
from bench.store import Store


def side(*samples: float) -> dict[str, Any]:
    return timing.entry(samples)


def entry(**measured: dict[str, Any]) -> dict[str, Any]:
    return {"sides": measured, "note": "a shape", "versions": {"jax": "1.0"}, "cores": 2, "threads": 2, "rounds": 3}


def results() -> dict[str, dict[str, Any]]:
    """One of everything that tables and plots ask for; our kernel is 1.2 times the plain one's time."""
    failed = {"error": "ValueError: no such kernel"}
    fast, slow = side(0.012, 0.024, 0.012), side(0.010, 0.020, 0.010)
    kernel = entry(ours=fast, plain=slow, eager=slow, inductor=slow, interpret=side(0.48), inductor_pallas=failed)
    sizes = {
        "8x128": entry(ours=side(1e-4), compute=side(1.1e-5), plain=side(1e-5), helion=side(0.25)),
        "512x512": entry(ours=side(3e-4), compute=side(2e-4), plain=side(2e-4)),
    }
    return {
        "kernels/exp": {**kernel, "blocks": 64, "sizes": sizes},
        "dispatch/mlp": entry(ours=side(2e-4), bare=side(1e-4), jax=side(5e-5), eager=side(2e-5), inductor=side(4e-5)),
        "decode/16 MiB": entry(ours=side(2e-3), eager=side(4e-3), inductor=side(2.5e-3)),
        "models/llama": entry(ours=side(0.01), eager=side(0.02), inductor=side(0.005)),
        "models/bert": entry(ours=side(0.01), eager=side(0.003), inductor=side(0.02)),
        "training/llama": entry(ours=side(0.02), eager=side(0.02), inductor=side(0.018)),
        "bfloat16/llama": entry(ours=side(0.01), eager=side(0.04), inductor=side(0.02)),
        "cache/one_op": entry(**{"ours cold": side(0.7), "ours warm": side(0.5)}),
        "cache/llama": entry(**{"ours cold": side(2.0, 2.2), "ours warm": side(0.5, 0.55)}),
        "layers/blocks": entry(**{str(n): side(1 + 0.1 * n) for n in (25, 50, 100, 200)}),
    }


def test_ratios_are_taken_within_rounds() -> None:
    # Twice as slow a machine in the second round, and a side that was cut short after two.
    found = timing.Ratio.of(side(1.0, 2.0, 1.5), side(0.5, 1.0))
    assert found == timing.Ratio(2.0, 2.0, 2.0) and str(found) == "2.00 (2.00 to 2.00)"
    assert timing.Ratio.of(side(1.0), {"error": "failed"}) is None
    assert timing.Ratio.of(None, side(1.0)) is None


def test_an_entry_has_median_and_quartiles() -> None:
    found = timing.entry([4.0, 1.0, 2.0, 3.0, 5.0], 7)
    assert (found["low"], found["median"], found["high"], found["calls"]) == (2.0, 3.0, 4.0, 7)
    assert found["samples"] == [4.0, 1.0, 2.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("seconds", "calls", "expected"),
    [(0.001, None, (9, 50)), (1.0, None, (9, 1)), (3.0, None, (3, 1)), (99.0, None, (1, 1)), (1.0, 300, (9, 300))],
)
def test_slow_sides_have_fewer_rounds_and_fast_ones_more_calls(seconds: float, calls: Any, expected: Any) -> None:
    assert timing.plan(seconds, 9, calls) == expected


class Scripted:
    """A side that says how long it took."""

    def __init__(self, *seconds: float, fails_after: int = 99) -> None:
        self.seconds, self.taken, self.fails_after = seconds, 0, fails_after

    def sample(self, calls: int) -> float:
        self.taken += 1
        if self.taken > self.fails_after:
            raise RuntimeError("out of memory")
        return self.seconds[min(self.taken, len(self.seconds)) - 1]


def test_sides_take_turns_and_a_failure_costs_one_side() -> None:
    measured = timing.interleave(
        {"fast": Scripted(0.1), "slow": Scripted(60.0), "broken": Scripted(0.1, fails_after=4)}, 3
    )
    assert measured["fast"]["samples"] == [0.1] * 3
    assert measured["slow"]["samples"] == [60.0], "the first call of a very slow side is its sample"
    assert measured["broken"] == {"error": "out of memory"}


def test_goals_are_met_or_missed() -> None:
    found = {goal.what: (goal.found, goal.met) for goal in report.all_goals(results())}
    assert found == {
        "exp: ours / plain": (1.2, True),
        "exp, 8x128: compute / plain": (1.1, True),
        "exp, 512x512: ours / plain": (pytest.approx(1.5), False),
        "exp, 512x512: compute / plain": (1.0, True),
        "exp: interpret / ours": (40.0, True),
        "mlp: ours / inductor": (pytest.approx(5.0), False),
        "decode, 16 MiB: ours / inductor": (pytest.approx(0.8), True),
        "speed over eager's, geometric mean of 2 models": (pytest.approx(0.6**0.5), False),
        "speed over Inductor's, geometric mean of 2 models": (pytest.approx(1.0), True),
        "speed over Inductor's, the least: llama": (0.5, False),
        "speed of training over eager's, geometric mean of 1 models": (1.0, True),
        "speed of training over Inductor's, geometric mean of 1 models": (pytest.approx(0.9), True),
        "speed of training over Inductor's, the least: llama": (pytest.approx(0.9), True),
        "speed in bfloat16 over eager's, geometric mean of 1 models": (4.0, True),
        "speed in bfloat16 over Inductor's, geometric mean of 1 models": (2.0, True),
        "speed in bfloat16 over Inductor's, the least: llama": (2.0, True),
        "one_op: seconds to the first result, after imports": (0.7, True),
        "llama: warm / cold, after imports": (0.25, True),
        "blocks: R² of a line through the medians": (pytest.approx(1.0), True),
    }


def test_a_side_that_failed_gives_no_verdict() -> None:
    broken = {"kernels/exp": entry(ours={"error": "wrong"}, plain=side(1.0))}
    assert [goal.met for goal in report.all_goals(broken)] == [None, None]
    assert [goal.found for goal in goals.model_goals({}, "models")] == [None] * 3


def test_layers_are_fitted() -> None:
    offset, slope, determination = goals.fit(results()["layers/blocks"]) or (0, 0, 0)
    assert (offset, slope, determination) == (pytest.approx(1.0), pytest.approx(0.1), pytest.approx(1.0))
    assert goals.fit(entry(**{"25": side(1.0), "50": side(2.0), "50, stages": side(1.0)})) is None


def test_document_has_every_section_and_every_failure() -> None:
    text = report.document(results())
    assert all(f"## {title}" in text for title in report.TITLES.values())
    assert "- exp, Inductor, Pallas: ValueError: no such kernel" in text
    row = next(line for line in text.splitlines() if line.startswith("| exp") and "1.20 (1.20 to 1.20)" in line)
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["12.0", "10.0", "10.0"] and "failed" in row
    assert "fit: 1.00 s + 100.0 ms a layer, R² = 1.0000" in text
    assert "2 cores, torch with 2 threads, 3 rounds, jax 1.0." in text


def test_plot_is_small_and_needs_figures(tmp_path: pathlib.Path) -> None:
    run.write(results(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"cpu.md", "cpu.png"}
    assert 5_000 < (tmp_path / "cpu.png").stat().st_size < 200_000
    assert plot.draw({"layers/blocks": results()["layers/blocks"]}) is None


def test_a_run_replaces_its_own_cases_alone(tmp_path: pathlib.Path) -> None:
    store = Store(tmp_path / "cpu.json", slashes=1)
    for key in ("kernels/exp", "kernels/gone", "dispatch/mlp"):
        store.put(key, {**entry(ours=side(1.0)), "kept": True})

    def measure(section: str, name: str, rounds: int) -> dict[str, Any] | str:
        return "the process ended" if name == "add" else entry(ours=side(2.0))

    failed = run.measure_all({"kernels": ["exp", "add"]}, 3, store, measure, Console(quiet=True))
    again = Store(tmp_path / "cpu.json", slashes=1)
    assert failed == ["kernels/add"] and again.entries["kernels/add"]["error"] == "the process ended"
    assert "kept" not in again.entries["kernels/exp"] and again.entries["dispatch/mlp"]["kept"]
    assert list(run.tidy(again)) == ["kernels/exp", "kernels/add", "dispatch/mlp"]


def test_command_line() -> None:
    given = command.parser().parse_args(["--folder", "a", "cpu", "--only", "kernels", "--cases", "exp", "add"])
    assert (given.section, given.cases, given.folder) == ("kernels", ["exp", "add"], pathlib.Path("a"))
    assert command.parser().parse_args(["cpu", "--folder", "b"]).folder == pathlib.Path("b")


def test_every_case_that_is_listed_can_be_measured() -> None:
    from bench.cpu import cache, decode, dispatch, kernels, layers

    known = {
        "kernels": kernels.CASES,
        "dispatch": dispatch.CASES,
        "decode": decode.CASES,
        **dict.fromkeys(("models", "training", "bfloat16"), zoo.MODELS),
        "cache": cache.CASES,
    }
    known |= {"layers": layers.CASES, "profiles": zoo.MODELS}
    for section in SECTIONS:
        assert list(run.cases_of(section)) == list(known[section])


def test_a_round_counts_if_both_of_its_processes_gave_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.cpu import cache

    folders: list[str] = []

    def first_result(name: str, backend: str, folder: str, precompiled: bool) -> dict[str, float]:
        folders.append(folder)
        if len(folders) == 2:
            raise subprocess.CalledProcessError(-6, "python", stderr="warning\nout of threads\n")
        return {"first": 4.0 if folders.count(folder) == 1 else 1.0, "total": 9.0}

    monkeypatch.setattr(cache, "first_result", first_result)
    found = cache.measure("kernel", 2)
    assert found["sides"]["ours cold"]["samples"] == [4.0] and found["sides"]["ours warm"]["samples"] == [1.0]
    assert found["sides"]["inductor warm, all"]["samples"] == [9.0, 9.0] and "out of threads" in found["note"]
    assert found["sides"]["ours, precompiled warm"]["samples"] == [1.0, 1.0]
    assert len(set(folders)) == 8, "every pair has a folder of its own"


def test_instructions_are_told_apart_by_what_they_compute() -> None:
    @jax.jit
    def function(x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.sort(x @ y, axis=0), jnp.sin(x) + 1

    hlo = function.lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile().as_text()
    found = {one.kind: one.source for one in profiles.instructions_of(hlo).values()}
    assert {"matrix products", "sorts", "elementwise"} <= set(found)
    assert found["matrix products"] == "dot_general"
    assert profiles.kind_of({"fusion", "copy", "parameter"}) == "copies"


def test_a_model_is_profiled() -> None:
    entry = profiles.measure("resnet", 1)
    count, seconds = entry["kinds"]["convolutions"]
    assert count == 9 and seconds > 0
    assert 0 < sum(seconds for _, seconds in entry["kinds"].values()) < 1
    assert entry["eager"]["convolutions"] > 0 and len(entry["slowest"]) == profiles.SLOWEST
    text = profiles.document({"profiles/resnet": entry, "profiles/other": {"error": "it failed", "sides": {}}})
    assert "## resnet: ours " in text and "it failed" in text


def test_copies_of_a_function_have_code_of_their_own() -> None:
    scale = 2.0

    def scaled(x: float, *, by: float = 3.0) -> float:
        return x * scale * by

    one, other = sides.own_code(scaled), sides.own_code(scaled)
    assert one(1.0) == other(1.0) == 6.0 and one(1.0, by=1.0) == 2.0
    assert one.__code__ != other.__code__ and isinstance(one, types.FunctionType)


def test_models_are_enlarged_by_their_configs() -> None:
    torch.manual_seed(0)
    small = zoo.MODELS["qwen3"].build()
    large = models.enlarge(small)
    assert (large.config.hidden_size, large.config.num_hidden_layers, large.config.head_dim) == (256, 4, 64)
    assert len(large.config.layer_types) == 4 and small.config.hidden_size == 64
    assert models.longer_inputs(zoo.MODELS["qwen3"])["input_ids"].shape == (2, 128)
    assert zoo.tokens().shape == (2, 16), "the suite keeps its sizes"
    resnet = zoo.MODELS["resnet"].build()
    assert models.enlarge(resnet) is resnet


def test_a_small_kernel_is_measured() -> None:
    from bench.cpu import kernels

    found = kernels.measure("exp", 1, ("ours", "compute", "eager", "interpret"), ("512x512", "8x128"))
    assert set(found["sides"]) == {"plain", "ours", "compute", "eager", "interpret"}
    (other,) = found["sizes"].values()
    assert set(other["sides"]) == {"plain", "ours", "compute"} and other["note"] == "float32 [512, 512]"
    for one in (*found["sides"].values(), *other["sides"].values()):
        assert one["median"] > 0, one
    assert found["blocks"] == 1


@pytest.mark.parametrize("name", ["flash_attention", "welford"])
def test_kernels_compute_alone_at_the_smallest_size(name: str) -> None:
    """A program with constants, and one with a length below a block; the sides compare their own results."""
    from bench.cpu import kernels

    found = kernels.measure(name, 1, ("compute",), ("8x128",))
    assert all(one.get("median", 0) > 0 for one in found["sides"].values()), found


def test_a_wrong_result_is_no_figure() -> None:
    def wrong() -> Any:
        return sides.called(torch.exp, [torch.ones(2)], sides.closeness(torch.ones(2), 1e-5, 1e-5))

    assert "not close" in sides.Sides({"eager": wrong}).measure(1)["eager"]["error"]
