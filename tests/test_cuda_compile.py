"""nvcc's output for the CUDA kernels: no register spills, and vector instructions in kernels that
are written for them. No GPU is used. The toolkit is the one that setup.py finds, or that of
make build-cuda; without one these tests are skipped."""

import functools
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
MAIN = "90"

# PTX instructions for 16 bytes at once. Constant: through the read-only cache.
LOAD = r"ld\.global\.(v4\.[ubf]32|v2\.[ubf]64)"
LOAD_CONSTANT = r"ld\.global\.nc\.v4\.[ubf]32"
STORE = r"st\.global(\.wb)?\.v4\.[ubf]32"
ADD = r"(atom|red)\.global\.add\.v4\.f32"
BYTE = r"(ld|st)\.global(\.nc)?\.[usb]8"
# Patterns of kernel names, and of the instructions that must be in their PTX.
VECTORS = {
    "DeformConv2dColumnsKernel<.*, true>": [LOAD_CONSTANT, STORE],
    "DeformConv2dGradientsKernel<.*, true>": [LOAD, LOAD_CONSTANT, STORE],
    "DeformConv2dGradientsKernel<.*, float, true>": [ADD],
    "DeformRoiPool(Shift)?(Gradient)?Kernel<.*>": [LOAD_CONSTANT],
    "PsRoiPoolKernel<.*>": [LOAD_CONSTANT],
}


@pytest.fixture(scope="session")
def toolkit():
    """(folder of the toolkit, folders of headers)."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CUDA_HOME", "")  # undoes what setup.py may write there
        setup = runpy.run_path(str(ROOT / "setup.py"))
        home = setup["find_toolkit"]()
    pip_toolkit = runpy.run_path(str(ROOT / "tools" / "build_cuda.py"))["PIP_TOOLKIT"]
    if home is None and (pip_toolkit / "bin" / "nvcc").exists():
        home = pip_toolkit
    if home is None:
        pytest.skip(f"no nvcc of CUDA {torch.version.cuda} found: make build-cuda gets one")
    torch_headers = Path(torch.__file__).parent / "include"
    return home, [home / "include", setup["TORCH_CUDA"] / "include", torch_headers]


@pytest.fixture(scope="session")
def kernels(toolkit, tmp_path_factory):
    """kernels(source, architecture) -> {name: (the assembler's remarks, PTX)}."""
    home, headers = toolkit

    @functools.cache
    def compiled(source, architecture):
        folder = tmp_path_factory.mktemp(f"{source.stem}_{architecture}")
        command = [
            home / "bin" / "nvcc",
            "-std=c++17",
            "-O3",
            "-UNDEBUG",
            f"-arch=sm_{architecture}",
        ]
        command += [f"-I{path}" for path in headers]
        command += ["-cubin", "-Xptxas=-v", "--keep", f"--keep-dir={folder}"]
        command += [source, "-o", folder / "cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        ptx = (folder / f"{source.stem}.ptx").read_text()
        bodies = dict(re.findall(r"\.entry (\w+)\((.*?)^}", ptx, re.MULTILINE | re.DOTALL))
        remarks = dict(re.findall(r"properties for (\w+)\n(.*\n.*)", done.stderr))
        names = subprocess.run(
            ["c++filt", *bodies], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        # void run<Kernel>(Kernel), without namespaces
        names = [re.search(r"<(.*)>\(", re.sub(r"\w+::", "", name))[1].strip() for name in names]
        return {name: (remarks[key], bodies[key]) for name, key in zip(names, bodies, strict=True)}

    return compiled


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=[] if a == MAIN else pytest.mark.slow) for a in ARCHITECTURES],
)
def test_no_spills(source, architecture, kernels):
    compiled = kernels(source, architecture)
    assert compiled
    for name, (remarks, _) in compiled.items():
        assert "0 bytes spill stores, 0 bytes spill loads" in remarks, f"{name}: {remarks}"


@pytest.mark.parametrize("kernel", VECTORS)
def test_vector_instructions(kernel, kernels):
    bodies = {
        name: ptx
        for source in SOURCES
        for name, (_, ptx) in kernels(source, MAIN).items()
        if re.fullmatch(kernel, name)
    }
    assert bodies, f"no kernel is called {kernel}"
    for name, ptx in bodies.items():
        for instruction in VECTORS[kernel]:
            assert re.search(instruction, ptx), f"{name} has no {instruction}"


def test_no_bytes(kernels):
    """If nvcc does not know an alignment, it splits vectors into bytes."""
    for source in SOURCES:
        for name, (_, ptx) in kernels(source, MAIN).items():
            assert not re.search(BYTE, ptx), f"{name} reads or writes single bytes"
