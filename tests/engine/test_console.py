"""The line that a training prints."""

import re
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import CommonMetricPrinter, EventStorage

from d2_deformable.engine.console import ConsolePrinter
from d2_deformable.engine.throughput import Throughput


def printed(caplog, words="healthy, p99 1.9 cells", times=(0.5,), waits=0.04):
    """Lines of our printer and of Detectron2's for the same training."""
    health = SimpleNamespace(in_words=words)
    printers = [ConsolePrinter(100, health), CommonMetricPrinter(100)]
    caplog.clear()
    with caplog.at_level("INFO", "detectron2"), EventStorage(start_iter=19) as storage:
        for value in times:
            storage.put_scalars(time=value, data_time=waits, total_loss=1.25, lr=0.01)
            hook = Throughput(8)
            hook.trainer = SimpleNamespace(storage=storage)
            hook.after_step()
        for each in printers:
            each.write()
        assert ("eta_seconds" in storage.histories()) == bool(times)
    # Detectron2's own formatter shortens the name.
    assert {
        record.name.removeprefix("detectron2").removeprefix("d2") for record in caplog.records
    } == {".utils.events"}
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def propagate(monkeypatch):
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_detectron2s_line_with_rate_memory_and_offsets(caplog):
    ours, detectron2s = printed(caplog)
    assert ours.startswith(detectron2s.rstrip())
    assert "eta: 0:00:40" in ours and "total_loss: 1.25" in ours and "lr: 0.01" in ours
    more = ours[len(detectron2s.rstrip()) :]
    pattern = r"  16 images/s  max_mem: (\d+)M  offsets: healthy, p99 1\.9 cells"
    assert int(re.fullmatch(pattern, more)[1]) > 50


def test_a_training_that_waits_for_its_images_says_so(caplog):
    """The median of the steps counts: the first one always waits."""
    ours, _ = printed(caplog, times=(5.0, 0.5, 0.5), waits=0.2)
    assert "  16 images/s  waiting for images 40% of the time  max_mem" in ours


def test_what_is_not_known_is_left_out(caplog):
    ours, detectron2s = printed(caplog, words="", times=())
    assert re.fullmatch(r"  max_mem: \d+M", ours[len(detectron2s.rstrip()) :])


def test_memory_of_a_gpu_is_detectron2s(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    ours, _ = printed(caplog)
    assert ours.count("max_mem") == 1 and "max_mem: 3M" in ours
