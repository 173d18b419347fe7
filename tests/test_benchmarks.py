"""The benchmarks run, and record what they saw, failures too."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from devices import HAS_GPU

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("backward", [False, True])
def test_ops_compares_equal_functions(backward, device):
    ops = load("ops")
    like = {"device": device, "dtype": torch.float32}
    ours, theirs, tensors = ops.convolution(2, 8, (5, 6), 2, offset_groups=2, **like)
    torch.testing.assert_close(ours(tensors), theirs(tensors))
    row = ops.compare(lambda: (ours, theirs, tensors), backward, device, rounds=3)
    assert row["ms"] > 0 and row["torchvision_ms"] > 0 and row["times_faster"] > 0


@pytest.mark.parametrize("name", ["deform_roi_pool", "ps_roi_pool"])
def test_ops_pools_the_same_shapes(name, device):
    ops = load("ops")
    like = {"device": device, "dtype": torch.float32, "classes": 2, "num_rois": 3}
    ours, theirs, tensors = ops.roi_pooling(2, name, **like)
    assert ours(tensors).shape == theirs(tensors).shape == (3, 2, 7, 7)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_needs_one(tmp_path):
    with pytest.raises(SystemExit, match="shows no GPU"):
        load("gpu").main([str(tmp_path)])


@pytest.fixture
def gpu(monkeypatch):
    """The script, as on a machine with a GPU and an operator library for it."""
    gpu = load("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "machine", lambda: "a GPU")
    monkeypatch.setattr(gpu, "needs_kernels", lambda run: None)
    return gpu


def test_gpu_records_failures_and_goes_on(gpu, tmp_path, monkeypatch):
    def step(run, out):
        fails = "print('before'); raise SystemExit('no such kernel')"
        yield "fails", lambda: run(sys.executable, "-c", fails)
        yield "lacks a tool", lambda: run("a-command-that-is-not-there")
        yield "hangs", lambda: run(sys.executable, "-c", "import time; time.sleep(60)")
        yield "works", lambda: run(sys.executable, "-c", "print('hello')").strip()

    monkeypatch.setattr(gpu, "STEPS", {"step": step, "other": lambda run, out: ()})
    assert gpu.main([str(tmp_path), "step", "--minutes", "0.1"]) == 1
    assert gpu.main([str(tmp_path), "other"]) == 0
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["machine"] == "a GPU"
    assert "no such kernel" in results["step"]["fails"]["failed"]
    assert "a-command-that-is-not-there" in results["step"]["lacks a tool"]["failed"]
    assert "TimeoutExpired" in results["step"]["hangs"]["failed"]
    assert results["step"]["works"]["result"] == "hello"
    assert "before" in (tmp_path / "step.log").read_text()
    with pytest.raises(SystemExit):
        gpu.main([str(tmp_path), "flies"])


@pytest.mark.skipif(HAS_GPU, reason="there are CUDA kernels")
def test_gpu_does_not_take_the_cpu_for_a_gpu(tmp_path, monkeypatch):
    gpu = load("gpu")
    with pytest.raises(RuntimeError, match="no kernels"):
        gpu.needs_kernels(gpu.Run(tmp_path, "tests", 60))


def test_gpu_reads_the_summary_of_pytest(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PYTEST", (*gpu.PYTEST, "-k", "test_make_targets_exist"))
    ((_, command),) = gpu.tests(gpu.Run(tmp_path, "tests", 60), tmp_path)
    assert "1 passed" in command()


def test_gpu_sanitizes_something(gpu):
    """The selection is of tests that exist, here by their names on the CPU."""
    folder, flag, selection = gpu.SANITIZED
    selected = subprocess.run(
        [*gpu.PYTEST, "--collect-only", folder, flag, selection.replace("cuda", "cpu")],
        capture_output=True,
        text=True,
        cwd=BENCHMARKS.parent,
    ).stdout
    assert all(f"tests/ops/test_{name}.py" in selected for name in ("types", "ps_roi_pool"))
