"""Findings about packages, threads, GPU and shared memory of machines unlike this one."""

import importlib.metadata
import os
import types
import warnings

import pytest
import torch

from d2_deformable.utils import environment


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU and 4 cores; returns a function that changes it."""
    monkeypatch.setattr(environment, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(environment, "QUOTA", tmp_path / "cpu.max")
    environment.DRIVER.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return monkeypatch.setattr


def problems(findings):
    return [finding.problem for finding in findings]


def test_nothing_is_wrong(machine):
    assert not [*environment.check_threads(), *environment.check_gpu(built_for_cuda=True)]
    assert environment.driver() == "535.104.05"


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)],
)
def test_more_threads_than_cores(quota, cores, machine):
    environment.QUOTA.write_text(quota)
    assert environment.usable_cores() == cores
    remedies = [finding.remedy for finding in environment.check_threads()]
    assert remedies == ([f"export OMP_NUM_THREADS={cores}"] if cores < 4 else [])


def test_a_gpu_that_is_not_used(machine):
    assert "operators are built for the CPU" in problems(environment.check_gpu(False))[0]

    def is_available():
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    machine(torch.cuda, "is_available", is_available)
    assert problems(environment.check_gpu(True)) == [
        "torch cannot use the GPU: The NVIDIA driver on your system is too old"
    ]
    machine(torch.version, "cuda", None)
    assert "torch is built for the CPU" in problems(environment.check_gpu(True))[0]
    environment.DRIVER.unlink()
    assert not problems(environment.check_gpu(False)) and environment.driver() == "none"


@pytest.mark.parametrize("pin", ["torch (==2.5.1)", "torch==2.5.1"])
def test_a_torchvision_of_another_torch(pin, monkeypatch):
    versions = {"torch": "2.4.0+cpu", "torchvision": "0.20.1"}
    monkeypatch.setattr(importlib.metadata, "version", versions.get)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["numpy", pin])
    (finding,) = environment.check_torchvision()
    assert finding.broken and "built for torch 2.5.1, and this is torch 2.4.0" in finding.problem
    versions["torch"] = "2.5.1+cpu"
    assert not list(environment.check_torchvision())


def test_an_extension_that_was_built_for_another_numpy(monkeypatch, tmp_path):
    (tmp_path / "pycocotools_1.py").write_text("raise ValueError('numpy.dtype size changed')")
    monkeypatch.syspath_prepend(tmp_path)
    (finding,) = environment.check_import("pycocotools", "pycocotools_1")
    assert finding.broken and "NumPy 2" in finding.remedy
    assert finding.problem == "pycocotools does not import (ValueError: numpy.dtype size changed)"
    (finding,) = environment.check_import("fvcore", "nowhere.nn")
    assert (finding.problem, finding.remedy) == ("fvcore is not installed", "pip install fvcore")


def test_little_shared_memory(monkeypatch):
    volume = types.SimpleNamespace(f_blocks=2**14, f_frsize=2**12)
    monkeypatch.setattr(os, "statvfs", lambda path: volume)
    assert problems(environment.check_shared_memory())[0].startswith("/dev/shm has 64 MiB")
    volume.f_blocks *= 100
    assert not list(environment.check_shared_memory())
