"""The benchmarks run, and record what they saw, failures too."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

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


def test_gpu_records_failures_and_goes_on(tmp_path, monkeypatch):
    gpu = load("gpu")

    def works(run, out):
        return {"said": run(sys.executable, "-c", "print('hello')").strip()}

    def fails(run, out):
        run(sys.executable, "-c", "print('before'); raise SystemExit('no such kernel')")

    def lacks_a_tool(run, out):
        run("a-command-that-is-not-there")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "environment", lambda: {"gpu": "none"})
    steps = {"fails": fails, "lacks_a_tool": lacks_a_tool, "works": works}
    monkeypatch.setattr(gpu, "STEPS", steps)
    assert gpu.main([str(tmp_path), "fails", "lacks_a_tool"]) == 1
    assert gpu.main([str(tmp_path), "works"]) == 0
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["works"]["said"] == "hello"
    assert "no such kernel" in results["fails"]["failed"]
    assert "a-command-that-is-not-there" in results["lacks_a_tool"]["failed"]
    assert "before" in (tmp_path / "fails.log").read_text()
    with pytest.raises(SystemExit):
        gpu.main([str(tmp_path), "flies"])


def test_gpu_reads_the_summary_of_pytest(tmp_path, monkeypatch):
    gpu = load("gpu")
    monkeypatch.setattr(gpu, "PYTEST", (*gpu.PYTEST, "-k", "test_make_targets_exist"))
    summary = gpu.tests(gpu.Run(tmp_path, "tests"), tmp_path)["summary"]
    assert "1 passed" in summary
