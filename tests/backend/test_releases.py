"""Other releases of torch: what they lack is no row, and fails where it is needed; what was not tested is a warning."""

from __future__ import annotations

import functools
import pathlib
import re
import subprocess
import sys
import warnings

import pytest
import torch

from tpu_lowering import compat, errors, releases
from tpu_lowering.compat import of_torch
from tpu_lowering.compat.operators import Absent
from tpu_lowering.kernels import tpu_tensors
from tpu_lowering.normalise import decompositions
from tpu_lowering.runtime.aot import compiler

EVERY_MODULE = """
import importlib, pkgutil
import tpu_lowering
for found in pkgutil.walk_packages(tpu_lowering.__path__, "tpu_lowering."):
    if not {*found.name.split(".")} & {"__main__", "demo", "worker", *SKIPPED}:
        importlib.import_module(found.name)
"""
LACKED = """
from tpu_lowering import compat
from tpu_lowering.compat.operators import Absent, Operator
for operator in [*vars(compat.aten).values(), *vars(compat.prims).values()]:
    if isinstance(operator, (Absent, Operator)):
        print(*(f"{one.name}\\n" for one in [operator, *vars(operator).values()] if isinstance(one, Absent)), sep="", end="")
"""
LACKING = {"2.13.0": ["aten.shallow_copy_data_"], "2.14.1": ["aten.cholesky"], "2.15.0": ["aten.cholesky"]}
"""The operators that are named somewhere in the package and that a release of torch lacks."""

NO_OPERATOR = """
import torch
from tpu_lowering.compat import operators
operators.found = lambda namespace, short: None
"""
NO_PRIVATE_NAME = """
import importlib.util, sys
import torch, jax
spec = importlib.util.find_spec("tpu_lowering").submodule_search_locations
spec = importlib.util.spec_from_file_location("tpu_lowering.compat.lookup", f"{spec[0]}/compat/lookup.py")
lookup = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lookup)
def private(package, module, name, why):
    raise lookup.missing(package, f"{module}.{name}", why)
lookup.private = private
"""


TABLES = "from tpu_lowering.lower.families import DRAWS, TABLE; print(len(TABLE), len(DRAWS))"
PROGRAMS = {
    "operators that are lacking": "SKIPPED = ()" + EVERY_MODULE + LACKED,
    "no operator": "SKIPPED = ()" + NO_OPERATOR + EVERY_MODULE + TABLES,
    "no private name": 'SKIPPED = ("restorable",)' + NO_PRIVATE_NAME + EVERY_MODULE + "print('imported')",
}
EACH = """
import os, sys
import helion.language, jax.experimental.pallas.tpu, torch.distributed.tensor
assert not any(name.startswith("tpu_lowering") for name in sys.modules)
for program in sys.argv[1:]:
    print("-- program", flush=True)
    if not (child := os.fork()):
        exec(program, {"__name__": "__main__"})
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
"""


@functools.cache
def printed() -> dict[str, list[str]]:
    """What each program prints in a process of its own, all forked from one that has imported torch and JAX."""
    command = [sys.executable, "-c", EACH, *PROGRAMS.values()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    _, *lines = done.stdout.split("-- program\n")
    return dict(zip(PROGRAMS, map(str.split, lines), strict=True))


def test_operators_that_the_installed_torch_lacks() -> None:
    """A name that is in no tested release is a slip of the pen, and would be a row that never is."""
    release = torch.__version__.partition("+")[0]
    lacked = sorted({".".join(name.split(".")[:2]) for name in printed()["operators that are lacking"]})
    known = sorted({name for names in LACKING.values() for name in names})
    assert lacked == LACKING.get(release, known)


def test_nothing_is_imported_that_a_release_may_lack() -> None:
    """Without any operator of aten and prims, everything can be imported, and the table is empty."""
    assert printed()["no operator"] == ["0", "0"]


def test_private_names_are_looked_up_where_they_are_needed() -> None:
    """Without any private name, all but what is a subclass of one (it is imported where a cache is on)."""
    assert printed()["no private name"] == ["imported"]


def test_operators_are_named_through_compat_alone() -> None:
    root = pathlib.Path(releases.__file__).parent
    found = [path for path in root.rglob("*.py") if re.search(r"torch\.ops\.(aten|prims)\b", path.read_text())]
    assert [path for path in found if path.parent.name != "compat"] == []


def test_an_absent_operator_is_nothing_until_it_is_called() -> None:
    absent = compat.aten.no_such_operator.default
    assert isinstance(absent, Absent) and not absent and compat.aten.no_such_operator.default is absent
    assert compat.aten.add.Tensor is torch.ops.aten.add.Tensor
    assert not compat.aten.add.no_such_overload and not compat.prims.no_such_operator
    assert {absent: 1}.get(torch.ops.aten.add.Tensor) is None
    with pytest.raises(errors.TpuLoweringError) as caught:
        absent(torch.ones(2))
    assert str(caught.value) == "\n".join(
        (
            f"[TL105] package missing or outside the tested versions: torch {releases.version('torch')}",
            "  why  expected aten.no_such_operator.default (an operator that this program needs), got none",
            f"  fix  pip install torch=={releases.TESTED['torch'][0]}",
        )
    )


def test_decompositions_that_are_kept_back_are_torch_s() -> None:
    """What a release takes apart by itself may change; with the default release, each entry still means something."""
    core = compat.core_aten_decompositions()
    kept = [overload for overloads in decompositions.KEPT.values() for overload in overloads]
    given = [*kept, *decompositions.LINSPACE, *decompositions.LOGSPACE]
    assert [overload for overload in given if overload not in core] == []


def test_a_missing_private_name_is_a_coded_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(of_torch.NAMES, "aot_autograd", ("torch._dynamo.backends.common", "gone", "forward graphs"))
    monkeypatch.delitem(vars(compat), "aot_autograd", raising=False)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as caught:
        torch.compile(lambda x: x + 1, backend="helion_tpu")(torch.ones(2))
    assert str(caught.value.inner_exception) == "\n".join(
        (
            f"[TL105] package missing or outside the tested versions: torch {releases.version('torch')}",
            "  why  expected torch._dynamo.backends.common.gone (forward graphs), got AttributeError: module "
            "'torch._dynamo.backends.common' has no attribute 'gone'",
            f"  fix  pip install torch=={releases.TESTED['torch'][0]}",
        )
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Releases to install; warnings are given anew."""
    found = {"torch": "2.13.0+cpu", "jax": "0.10.2", "jaxlib": "0.10.2"}
    monkeypatch.setattr(releases, "version", found.get)
    monkeypatch.setattr(releases, "TESTED", {**releases.RELEASES["torch_tpu"], **releases.RELEASES["torch"]})
    releases.warn_of_untested.cache_clear()
    yield found
    releases.warn_of_untested.cache_clear()


def test_releases_that_were_not_tested_are_one_warning(installed: dict[str, str]) -> None:
    installed.update(torch="2.16.0+cu140", jax="0.11.0", jaxlib="0.11.0", helion="1.5.1")
    compiled = torch.compile(lambda x: x * 2, backend="helion_tpu")
    with pytest.warns(RuntimeWarning) as caught:
        compiled(torch.ones(3))
        compiled(torch.ones(3, 3))
        compiled(torch.ones(3, dtype=torch.int32))
    assert [str(warning.message) for warning in caught if "TL105" in str(warning.message)] == [
        "[TL105] package missing or outside the tested versions: torch, jax, jaxlib\n"
        "  why  torch 2.16.0+cu140, tested with 2.13.0, 2.14.1, 2.15.0; jax 0.11.0, tested with 0.10.2, 0.9.2; "
        "jaxlib 0.11.0, tested with 0.10.2, 0.9.2\n"
        "  fix  pip install torch==2.13.0 jax==0.10.2 jaxlib==0.10.2"
    ]


def test_tested_releases_are_no_warning(installed: dict[str, str]) -> None:
    for torch_release in releases.TORCH:
        for jax_release in releases.JAX:
            installed.update(torch=torch_release, jax=jax_release, jaxlib=jax_release)
            releases.warn_of_untested.cache_clear()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                releases.warn_of_untested()


def test_a_package_with_a_device_beside_others_is_one_warning(installed: dict[str, str]) -> None:
    installed.update(torch_tpu="0.1.1", libtpu="0.0.40")
    with pytest.warns(RuntimeWarning) as caught:
        releases.check("torch_tpu", tpu_tensors.DEVICE)
        releases.check("torch_tpu", tpu_tensors.DEVICE)
    assert [str(warning.message) for warning in caught] == [
        "[TL105] package missing or outside the tested versions: torch_tpu, libtpu\n"
        "  why  torch_tpu 0.1.1, tested with 0.2.0; libtpu 0.0.40, tested with 0.0.52\n"
        "  fix  pip install torch_tpu==0.2.0 libtpu==0.0.52"
    ]


def test_what_is_for_linux_on_x86_alone_is_a_coded_reason_elsewhere(
    installed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases.sys, "platform", "darwin")
    monkeypatch.setattr(releases.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(releases.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.TpuLoweringError) as caught:
        compiler.require_libtpu()
    assert str(caught.value) == "\n".join(
        (
            "[TL108] TPU compiler not installed: libtpu",
            "  why  expected the package libtpu, which holds the TPU compiler and needs no TPU, got none",
            "  fix  use Linux on x86-64: libtpu is released for Linux on x86-64 alone, and this is Darwin on arm64",
        )
    )
    with pytest.raises(errors.TpuLoweringError) as caught:
        releases.check("torch_xla", "xla")
    assert caught.value.refusal.remedy == (
        "use Linux on x86-64: torch_xla is released for Linux on x86-64 alone, and this is Darwin on arm64"
    )
