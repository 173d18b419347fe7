"""The benchmarks of growth: of a training step, of data sets, and of the loader."""

import functools
import json
import mmap
import operator
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from benchmarks import decoders, draw_growth, growth, loader, network_model, records
from benchmarks.fresh import in_fresh_process, peak_mib, private_mib, resident_mib, shared_mib
from benchmarks.table import grouped, markdown
from yamls import CONFIGS

ROOT = Path(__file__).parents[1]
QUICK = CONFIGS / "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc"
)


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def rows_of(file) -> dict[str, dict]:
    return {row["case"]: row for row in json.loads(file.read_text())["rows"]}


def test_a_step_is_measured_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "Step", functools.partial(growth.Step, side=64, rois=16))
    sweeps = {
        "classes": growth.Sweep("classes", (2, 4)),
        "processes": growth.Sweep("processes", (1, 2)),
    }
    monkeypatch.setattr(growth, "SWEEPS", sweeps)
    file, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    monkeypatch.setattr(growth, "in_fresh_process", lambda measure, *given: measure(*given))
    growth.main(["--seconds", "0", "--json", str(file), "--plot", str(picture)])
    rows = rows_of(file)
    assert list(rows) == ["classes: 2", "classes: 4", "classes", "processes: 1", "processes: 2"]
    assert all(rows[name]["ms"] > 0 for name in ("classes: 2", "processes: 2"))
    alone, two = (rows[f"processes: {n}"] for n in (1, 2))
    assert alone["cells"]["share of the ideal"] == "100%"
    assert alone["all_reduce_ms"] == 0 < two["all_reduce_ms"]
    assert picture.stat().st_size > 5000
    capsys.readouterr()

    def fail(*given):
        raise AssertionError("a finished row is measured again")

    monkeypatch.setattr(growth, "in_fresh_process", fail)
    growth.main(["--json", str(file)])
    assert "classes: 4, step" in capsys.readouterr().out


def test_all_rois_are_trained_on():
    """The number of RoIs is the one that the sweep says."""
    step = growth.Step(side=64, rois=48, batch=2)
    model, _ = step.model()
    pooled = []
    model.roi_heads.register_forward_pre_hook(lambda _, given: pooled.append(len(given[2][0])))
    with growth.EventStorage():
        model(step.draw())
    assert pooled == [48]


def test_a_line_and_a_curve_are_told_apart():
    fixed, rate, off, exponent = growth.line([1, 2, 4, 8], [7, 9, 13, 21])
    assert (round(fixed, 6), round(rate, 6), round(off, 6)) == (5, 2, 0) and 0.6 < exponent < 0.8
    *_, off, exponent = growth.line([1, 2, 4, 8], [1, 4, 16, 64])
    assert off > 0.5 and exponent == pytest.approx(2)


def test_the_shipped_sweeps_double():
    for sweep in growth.SWEEPS.values():
        sizes = list(map(sweep.size, sweep.values))
        assert all(1.9 < b / a < 2.1 for a, b in zip(sizes, sizes[1:]))
        assert len(sweep.steps()) == len(sizes)


def test_a_ring_exchanges_twice_the_gradients():
    assert network_model.all_reduce_seconds(100, 2, 50) == 2.0
    assert network_model.all_reduce_seconds(100, 10**9, 50) == pytest.approx(4.0)
    assert network_model.efficiency(3.0, 1.0) == (0.75, 1.0)
    assert network_model.efficiency(1.0, 4.0) == (0.2, 0.25)


def test_the_model_of_the_network_is_up_to_date():
    page = ROOT / "docs/speed.md"
    assert network_model.filled(page) == page.read_text()
    assert network_model.markdown() in page.read_text()


def test_a_function_in_a_process_of_its_own():
    assert in_fresh_process(operator.add, 2, 3) == 5
    with pytest.raises(RuntimeError, match=r"(?s)truediv\(1, 0\): .*ZeroDivisionError"):
        in_fresh_process(operator.truediv, 1, 0)


def test_memory_is_that_of_the_process():
    before = resident_mib(), private_mib(), shared_mib()
    block = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    after = resident_mib(), private_mib(), shared_mib()
    assert all(48 < b - a < 80 for a, b in zip(before, after))
    assert peak_mib() >= after[0]


@pytest.mark.slow
def test_records_of_a_data_set_are_measured(tmp_path):
    file = tmp_path / "records.json"
    records.main(["--counts", "40", "--json", str(file)])
    cells = [row["cells"] for row in json.loads(file.read_text())["rows"]]
    assert len(cells) == 2
    # Times are rounded to 0.1 s.
    assert all(value > 0 for row in cells for name, value in row.items() if "MiB" in name)


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(4):
        noise = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(folder / f"{i}.jpg")
    return folder


def test_the_loader_is_measured(photographs, tmp_path):
    file = tmp_path / "loader.json"
    words = ["--config-file", str(QUICK), "--photographs", str(photographs), "--json", str(file)]
    try:
        loader.main([*words, "--workers", "0", "1", "--seconds", "0.05"])
    finally:
        DatasetCatalog.remove(loader.PHOTOGRAPHS)
        MetadataCatalog.remove(loader.PHOTOGRAPHS)
    rows = rows_of(file)
    assert list(rows) == ["0 workers", "1 workers"]
    assert all(row["cells"]["images/s"] > 0 for row in rows.values())


def test_decoders_are_measured(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(decoders, "CAMERA", (80, 60))
    file = tmp_path / "decoders.json"
    decoders.main([str(photographs), "--rounds", "1", "--json", str(file)])
    small, enlarged = rows_of(file).values()
    assert (small["cells"]["files"], enlarged["cells"]["files"]) == (4, 4)
    assert "of values differ" in small["cells"]["largest difference, torchvision"]
    with pytest.raises(SystemExit):
        decoders.main([str(tmp_path / "none")])


def test_rows_with_other_cells_are_tables_of_their_own():
    rows = [{"case": "a", "pass": "", "mode": "", "cells": {"ms": 1}}]
    rows += [{"case": "b", "pass": "", "mode": "", "cells": {"MiB": 2.5}}, {**rows[0], "case": "c"}]
    assert [[row["case"] for row in group] for group in grouped({"rows": rows})] == [
        ["a", "c"],
        ["b"],
    ]
    about = dict.fromkeys(
        ("machine", "threads", "dtype", "cpu_capability", "versions", "commit", "date", "command")
    )
    text = markdown({**about, "rows": rows})
    assert "| case | ms |\n| --- | --- |\n| a | 1 |\n| c | 1 |" in text and "rounds" not in text


def test_every_sweep_has_a_panel_for_time_and_memory():
    rows = [
        {"sweep": name, "size": size, "ms": 3.0 * size, "mib": 2.0}
        for name, sweep in growth.SWEEPS.items()
        for size in map(sweep.size, sweep.values)
    ]
    figure = draw_growth.draw({"rows": rows})
    assert len(figure.axes) == 2 * len(growth.SWEEPS)
    assert all(axes.get_xlim()[0] == axes.get_ylim()[0] == 0 for axes in figure.axes)
