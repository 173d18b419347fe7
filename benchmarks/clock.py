"""Seconds and peak memory of one call, on the CPU and on CUDA."""

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 2**20
FLUSHED = 128 * MIB  # more than the L2 of any GPU


def mebibytes(growth: int, results: dict) -> float:
    """MiB of `growth` bytes, without those of the results."""
    return round(max(0, growth - sum(t.nbytes for t in results.values())) / MIB, 1)


def poison(like: dict, dtype) -> None:
    """Fill blocks as large as the tensors `like` with NaN, and free them.

    The allocator hands out freed blocks again, so values that an implementation does not write are
    NaN.
    """
    blocks = [torch.full_like(tensor, torch.nan, dtype=dtype) for tensor in like.values()]
    del blocks


class CpuClock:
    """Wall-clock seconds. The cache is left as the previous call left it."""

    device = torch.device("cpu")

    def seconds(self, call: Callable, mode: str = "") -> float:
        start = time.perf_counter()
        results = call()
        seconds = time.perf_counter() - start
        del results  # freeing takes time too
        return seconds

    def peak_memory(self, call: Callable) -> float | None:
        """Peak MiB of a call, without its results and the memory in use before; None if unknown.

        This is the growth of the resident set to its peak. It covers every allocator, but counts
        whole pages of touched memory. Free memory is returned to the system first, since its reuse
        would not show.
        """
        gc.collect()
        try:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        except (OSError, AttributeError):
            return None
        before = _resident("VmRSS")
        results = call()
        return mebibytes(_resident("VmHWM") - before, results)


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


class CudaClock:
    """Seconds between two CUDA events.

    Modes: "cold" first writes 128 MB, so that L2 holds no input; "hot" first makes the same call;
    "graph" is cold and replays a CUDA graph, without launch time on the CPU.
    """

    def __init__(self, device):
        self.device = device
        self.flushed = torch.empty(FLUSHED, dtype=torch.uint8, device=device)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(self, call: Callable, mode: str = "hot") -> float:
        if mode == "graph":
            call = self._captured(call)
        if mode == "hot":
            call()
        else:
            self.flushed.zero_()
        self.start.record()
        results = call()
        self.end.record()
        del results
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3

    @staticmethod
    def _captured(call):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()
        for tensor in results.values():
            tensor.fill_(torch.nan)
        return graph.replay

    def peak_memory(self, call: Callable) -> float:
        """Peak MiB of PyTorch's allocator, without the results and the memory in use before."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = call()
        torch.cuda.synchronize()
        return mebibytes(torch.cuda.max_memory_allocated() - before, results)


def modes_of(device: torch.device) -> tuple[str, ...]:
    return ("cold", "hot", "graph") if device.type == "cuda" else ("",)


def clock_of(device: torch.device):
    return CudaClock(device) if device.type == "cuda" else CpuClock()
