"""The operator library and its build; each failure is reported in one sentence."""

import platform
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ops.arguments import every_argument

from d2_deformable import ops
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


def test_library_of_another_torch_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.14.1+cpu")
    library = tmp_path / "_C.so"
    library.write_bytes(b"\0d2_deformable built with torch 2.13.0\0")
    with pytest.raises(ImportError, match="built with torch 2.13.0, and torch 2.14.1") as refusal:
        _library.load(library)
    assert "install the wheel of d2_deformable for torch 2.14, or run `pip" in str(refusal.value)
    library.write_bytes(b"\0d2_deformable built with torch 2.14.0\0")
    with pytest.raises(ImportError, match="do not load"):  # loading was tried
        _library.load(library)


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files with readelf")
def test_library_is_independent_of_python():
    """One binary serves every Python version: it needs no symbol and no library of Python."""
    table = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--dyn-syms", _library.PATH],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "libtorch_cpu" in table
    assert "libpython" not in table and "libtorch_python" not in table
    assert re.findall(r"\bUND (_?Py\w+)", table) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs several instruction sets")
def test_instruction_sets_are_called_as_in_pytorch():
    """cpu_kernels.cpp selects kernels by this name, and an unknown name gets the slowest ones."""
    source = (ROOT / "csrc" / "cpu" / "cpu_kernels.cpp").read_text()
    known = re.findall(r'capability == "(\w+)"', source)
    assert known == ["AVX512", "AVX2"]
    assert torch.backends.cpu.get_cpu_capability() in {*known, "DEFAULT"}


def has_kernel(name, key) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"d2_deformable::{name}", key)


def test_only_public_functions_have_defaults():
    for name in ("deform_conv2d", "deform_roi_align", "deform_roi_pool", "ps_roi_pool"):
        for operator in (name, f"{name}_backward"):
            schema = getattr(torch.ops.d2_deformable, operator).default._schema
            assert not [a.name for a in schema.arguments if a.has_default_value()]


def test_every_schema_has_its_kernels_and_is_in_library_cpp():
    schemas = re.findall(r'"(\w+)\(Tensor', (ROOT / "csrc" / "library.cpp").read_text())
    assert len(schemas) == 8
    for name in schemas:
        assert has_kernel(name, "CPU")
        assert has_kernel(name, "CUDA") == ops.has_cuda()
        for key in ("AutocastCPU", "AutocastCUDA"):
            assert has_kernel(name, key) == (not name.endswith("_backward"))


def test_has_cuda_compiles():
    """Every operator calls it for an input on CUDA."""
    compiled = torch.compile(lambda x: x + ops.has_cuda(), backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1)).item() == ops.has_cuda()


def test_setup_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="install torch first") as stop:
        runpy.run_path(SETUP)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    "force, version, message",
    [
        ("1", "13.0", "FORCE_CUDA=1 needs a toolkit of CUDA 13"),
        ("1", None, "FORCE_CUDA=1 needs a torch built for CUDA"),
        ("yes", "13.0", "FORCE_CUDA=yes is neither 0 nor 1"),
    ],
)
def test_setup_refuses_cuda_that_cannot_be_built(monkeypatch, force, version, message):
    monkeypatch.setenv("FORCE_CUDA", force)
    monkeypatch.setattr(torch.version, "cuda", version)
    no_toolkit_anywhere(monkeypatch)
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(SETUP, run_name="__main__")


def no_toolkit_anywhere(monkeypatch, but="/nowhere"):
    exists = Path.exists

    def without_nvcc(path):
        return exists(path) and (path.name != "nvcc" or path.is_relative_to(but))

    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(Path, "exists", without_nvcc)


def make_program(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def test_setup_finds_the_toolkit_behind_a_script(monkeypatch, tmp_path):
    """The nvcc on the PATH may be a script that is not near the toolkit's headers."""
    home, script = tmp_path / "toolkit", tmp_path / "nvcc"
    version = torch.version.cuda or "13.0"
    make_program(home / "bin" / "nvcc", f"echo 'Cuda compilation tools, release {version}, V1'")
    make_program(script, f"echo '#$ TOP={home}/bin/..' >&2")
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setenv("CUDA_HOME", "")  # so that what setup.py writes there is undone
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: str(script))
    assert runpy.run_path(SETUP)["find_toolkit"]() == home


def test_setup_skips_a_toolkit_of_another_version(monkeypatch, tmp_path):
    make_program(tmp_path / "bin" / "nvcc", "echo 'Cuda compilation tools, release 9.1, V9.1.85'")
    no_toolkit_anywhere(monkeypatch, but=tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("FORCE_CUDA", "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with_cuda, why = runpy.run_path(SETUP)["choose_cuda"]()
    assert not with_cuda
    assert f"no toolkit of CUDA 13 (CUDA_HOME, or nvcc on the PATH; {tmp_path} is 9.1)" in why


def default_calls():
    """Each operator with the arguments that have no default, and the leaf of one gradient."""
    x = torch.randn(2, 8, 6, 5, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 2, 40, 50], [1, 0, 0, 60, 30]])
    weight = torch.randn(4, 8, 1, 1, requires_grad=True)
    pool = {"output_size": 2, "spatial_scale": 0.1}
    return [
        (ops.deform_conv2d, (x, torch.randn(2, 2, 6, 5), weight), {}, weight),
        (ops.deform_roi_pool, (x, rois), pool, x),
        (ops.deform_roi_align, (x, rois), pool, x),
        (ops.ps_roi_pool, (x, rois), {**pool, "output_size": 1}, x),
        (ops.ps_roi_pool, (x, rois), pool, x),
    ]


@pytest.mark.parametrize("index", range(5))
def test_defaults_compile(index):
    function, arguments, keywords, _ = default_calls()[index]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments, **keywords), function(*arguments, **keywords))


@pytest.mark.parametrize("index", range(5))
def test_gradients_are_contiguous(index):
    """Fake kernels say so, and compiled code relies on it."""
    function, arguments, keywords, leaf = default_calls()[index]
    (gradient,) = torch.autograd.grad(function(*arguments, **keywords).square().sum(), leaf)
    assert gradient.is_contiguous()


@pytest.mark.parametrize(
    ("op", "sizes"),
    [
        ("deform_roi_pool", {"output_size": 2, "group_size": 2**32}),
        ("ps_roi_pool", {"output_size": 2**32}),
    ],
)
def test_sizes_beyond_64_bits_are_refused(op, sizes):
    x, rois = torch.zeros(1, 8, 4, 4), torch.zeros(1, 5)
    call = every_argument(getattr(ops, op), input=x, rois=rois, spatial_scale=1.0, **sizes)
    with pytest.raises(RuntimeError, match="below 2.24"):
        getattr(torch.ops.d2_deformable, op)(**call)


def test_graphs_name_the_operator():
    """Anomaly mode and profilers print the name."""
    input, rois = torch.randn(1, 4, 5, 5, requires_grad=True), torch.tensor([[0.0, 0, 0, 9, 9]])
    output = ops.ps_roi_pool(input, rois, output_size=2, spatial_scale=0.5)
    assert output.grad_fn.name() == "d2_deformable_ps_roi_poolBackward"
