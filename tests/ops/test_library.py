"""The operator library and its build: what goes wrong is said in one sentence."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2_deformable.ops import _library

ROOT = Path(__file__).resolve().parents[2]
SETUP = str(ROOT / "setup.py")


def test_missing_library_says_how_to_build_it(tmp_path):
    with pytest.raises(ImportError, match=r"_C.so is missing\): run `pip install"):
        _library.load(tmp_path / "_C.so")


def test_broken_library_says_how_to_build_it(tmp_path):
    broken = tmp_path / "_C.so"
    broken.write_text("not a library")
    with pytest.raises(ImportError, match="built for another torch or machine; run `pip install"):
        _library.load(broken)


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files with readelf")
def test_library_does_not_know_python():
    """One binary serves every Python: it asks for no symbol and no library of Python's."""
    table = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--dyn-syms", _library.PATH],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "libtorch_cpu" in table
    assert "libpython" not in table and "libtorch_python" not in table
    assert re.findall(r"\bUND (_?Py\w+)", table) == []


def test_every_schema_has_a_cpu_kernel_and_stands_in_library_cpp():
    schemas = re.findall(r'"(\w+)\(Tensor', (ROOT / "csrc" / "library.cpp").read_text())
    assert len(schemas) == 6
    for name in schemas:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"d2_deformable::{name}", "CPU")


def test_setup_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="install torch first") as stop:
        runpy.run_path(SETUP)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    "force, version, message",
    [
        ("1", "13.0", "FORCE_CUDA=1 needs a CUDA toolkit"),
        ("1", None, "FORCE_CUDA=1 needs a torch built for CUDA"),
        ("yes", "13.0", "FORCE_CUDA=yes is neither 0 nor 1"),
    ],
)
def test_setup_refuses_cuda_that_cannot_be(monkeypatch, force, version, message):
    monkeypatch.setenv("FORCE_CUDA", force)
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(SETUP)
