"""The benchmarks run, and record their results and failures."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from benchmarks import (
    busy_machine,
    cases,
    clock,
    command,
    exact,
    gpu,
    models,
    networks,
    ops,
    plot,
    protocol,
    soft_nms,
    table,
)
from benchmarks.implementations import OURS, PLAIN, TORCHVISION, Implementation, implementations
from d2_deformable.cli import train
from d2_deformable.config import read_config
from d2_deformable.layers import DeformConv2d
from devices import HAS_GPU

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CPU = torch.device("cpu")


def smoke(benchmark, *options) -> int:
    parser = command.parser(benchmark.__name__.rpartition(".")[2], "", rounds=9)
    return command.run(parser, benchmark.rows, ["--smoke", *map(str, options)])


@pytest.fixture
def one_thread(threads):
    threads(1)


# Both commands, end to end.


def test_ops_writes_all_rows(tmp_path, capsys, device, one_thread):
    file = tmp_path / "ops.json"
    assert smoke(ops, "--device", device, "--json", file, "--plot", tmp_path / "ops.png") == 0
    data = json.loads(file.read_text())
    reduced = [case.reduced() for case in [*cases.CONVOLUTIONS, *cases.POOLINGS]]
    labels = {case.label(std) for case in reduced for std in case.offset_stds}
    assert {row["case"] for row in data["rows"]} == labels
    assert {row["pass"] for row in data["rows"]} == {"forward", "forward + backward"}
    for row in data["rows"]:
        assert len(row["ms"][OURS]) == 2 and min(row["ms"][OURS]) > 0 and row["error"][OURS] < 1e-4
        assert TORCHVISION in row["times_faster"]
        assert (PLAIN in row["ours_to"]) == (row["base"] == PLAIN)
    for key in ("machine", "threads", "versions", "commit", "date", "cpu_capability", "command"):
        assert data[key]
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("torchvision / ours", "ours / plain", *labels))
    assert (tmp_path / "ops.png").stat().st_size > 10_000


def test_models_writes_all_rows(tmp_path, device, one_thread):
    file = tmp_path / "models.json"
    assert smoke(models, "--device", device, "--json", file) == 0
    rows = json.loads(file.read_text())["rows"]
    names = {row["case"] for row in rows}
    assert len(names) == 5 and len(rows) == 10
    assert all(row["ours_to"][PLAIN][1] > 0 for row in rows)
    assert sum(TORCHVISION in row["ms"] for row in rows) == 2


def test_continues_where_it_stopped(tmp_path, one_thread, capsys):
    file = tmp_path / "ops.json"
    options = ("--json", file, "--only", "small 64ch 56x56, ")
    assert smoke(ops, *options, "--seconds", "1e-9") == 2  # no time for anything
    assert "2 rows lack rounds" in capsys.readouterr().out
    assert smoke(ops, *options) == 0
    data = json.loads(file.read_text())
    shorter, whole = data["rows"]
    shorter["ms"] = {name: [1e6] for name in shorter["ms"]}  # as if stopped in the middle
    file.write_text(json.dumps(data))
    assert smoke(ops, *options) == 0
    longer, same = json.loads(file.read_text())["rows"]
    assert longer["ms"][OURS][0] == 1e6 > longer["ms"][OURS][1]
    assert same == whole
    before = file.read_text()
    assert smoke(ops, *options) == 0
    assert file.read_text() == before
    with pytest.raises(SystemExit):
        smoke(ops, *options, "--dtype", "bfloat16")
    assert "was measured with dtype float32, now it is bfloat16" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        smoke(ops, "--only", "no such case")


def test_half_precision(one_thread):
    assert smoke(ops, "--dtype", "bfloat16", "--only", "res4 256ch 38x63, ") == 0


# The parts that they are based on.


def rounds_of(seconds, guard=None, rounds=3, **options):
    """The order of runs, and the result of `interleave`, for functions that report `seconds`."""
    order = []

    def run(name):
        return lambda inputs: order.append((inputs, name)) or seconds[name]

    inputs = iter(range(99))
    result = protocol.interleave(
        {name: run(name) for name in seconds}, lambda: next(inputs), rounds, guard, **options
    )
    return order, result


def test_rounds_rotate_and_share_fresh_inputs():
    order, result = rounds_of({"ours": 2.0, "plain": 1.0, "other": 6.0})
    assert order == [
        *((0, "ours"), (0, "plain"), (0, "other")),
        *((1, "plain"), (1, "other"), (1, "ours")),
        *((2, "other"), (2, "ours"), (2, "plain")),
    ]
    summary = result.summary("plain")
    assert summary["ratio"] == {"ours": [2.0] * 3, "other": [6.0] * 3}
    assert summary["ours_to"]["plain"] == [2.0] * 3
    assert summary["times_faster"]["other"] == [3.0] * 3


def test_ratios_are_taken_within_a_round():
    rounds = protocol.Rounds({"ours": [2.0, 20.0, 4.0], "plain": [1.0, 10.0, 1.0]})
    assert rounds.ratio("ours", "plain") == [2.0, 2.0, 3.0]


def test_rounds_end_at_the_deadline_and_continue():
    order, result = rounds_of({"ours": 2.0, "plain": 1.0}, deadline=0.0)
    assert order == [(0, "ours"), (0, "plain")]  # one round, since otherwise none would ever run
    order, result = rounds_of({"ours": 2.0, "plain": 4.0}, earlier=result)
    assert order[0] == (0, "plain")
    assert result.ms == {"ours": [2e3] * 3, "plain": [1e3, 4e3, 4e3]}


class BusyAt:
    """A guard that finds the machine busy at the given checks."""

    def __init__(self, *busy):
        self.busy, self.looks = busy, -1

    def is_quiet(self):
        self.looks += 1
        return self.looks not in self.busy


def test_busy_rounds_are_repeated():
    order, result = rounds_of({"ours": 1.0}, BusyAt(2))  # after the second round, before the third
    assert [inputs for inputs, _ in order] == [0, 1, 2, 3, 4]
    assert (result.discarded, result.busy) == (2, 0)


def test_busy_rounds_are_kept_after_enough_discards():
    order, result = rounds_of({"ours": 1.0}, BusyAt(*range(99)))
    assert (len(order), result.discarded, result.busy) == (9, 6, 3)


def test_guard_notices_a_slower_machine():
    class Clock:
        device = CPU
        now = 1.0

        def seconds(self, call):
            return self.now

    guard = protocol.Guard(Clock())
    assert guard.is_quiet()
    Clock.now = 1.2
    assert not guard.is_quiet()
    Clock.now = 0.5  # faster than the best so far
    assert guard.is_quiet()
    Clock.now = 1.0
    assert not guard.is_quiet()


@pytest.mark.parametrize("case", [*cases.CONVOLUTIONS[2:3], *cases.POOLINGS], ids=lambda c: c.name)
def test_finds_wrong_results(case):
    case = case.reduced()
    tensors, expected = exact.exact(case, 1, CPU, torch.float32, True)
    ours = implementations(case, CPU)[0][OURS].results(tensors, True)
    assert exact.error(case, ours, expected) < 1e-5
    assert set(ours) == {"output", *(f"grad of {name}" for name in case.leaves())}
    for tensor, place in itertools.product(ours.values(), (0, -1)):
        right = tensor.flatten()[place].clone()
        tensor.view(-1)[place] += 1
        assert exact.error(case, ours, expected) > 1e-3
        tensor.view(-1)[place] = torch.nan
        assert not exact.error(case, ours, expected) < 1
        tensor.view(-1)[place] = right


def test_a_wrong_operator_stops_the_benchmark(monkeypatch, one_thread):
    right = Implementation.results

    def wrong(self, tensors, backward):
        results = right(self, tensors, backward)
        if "input" in tensors and self.is_exact and tensors["input"].dtype == torch.float32:
            results["output"] = results["output"].new_zeros(results["output"].shape)
        return results

    monkeypatch.setattr(Implementation, "results", wrong)
    with pytest.raises(ArithmeticError, match="small 64ch 56x56, offsets 8 px: error 1"):
        smoke(ops, "--only", "small 64ch 56x56, offsets 8 px, forward")


def test_torchvision_replaces_our_operator(monkeypatch):
    def theirs(input, offset, weight, *others, **arguments):
        return offset[:, :1]

    monkeypatch.setattr(torchvision.ops, "deform_conv2d", theirs)
    layer = DeformConv2d(2, 3, 3, padding=1)
    with networks.torchvision_inside():
        assert layer(torch.ones(1, 2, 4, 5)).shape == (1, 1, 4, 5)
    assert layer(torch.ones(1, 2, 4, 5)).shape == (1, 3, 4, 5)


def test_offsets_have_a_standard_deviation_of_two_pixels():
    network = networks.REDUCED[0]
    _, model = network.models(CPU)
    inputs, offsets = network.draw(CPU), []
    network.spread_offsets(model, inputs)
    for layer in model.modules():
        if isinstance(layer, DeformConv2d):
            layer.conv_offset.register_forward_hook(lambda *args: offsets.append(args[2]))
    model(inputs)
    assert [round(x.std().item(), 3) for x in offsets] == [2.0] * 3


def test_a_later_call_gets_the_poison(device):
    """One of the next calls gets it: the C library may first return other free memory."""
    size = 100, 100  # large blocks may go back to the system
    outputs = {f"output {i}": torch.empty(size, device=device) for i in range(20)}
    clock.poison(outputs, torch.float32)
    blocks = [torch.empty(size, device=device) for _ in range(200)]
    assert any(block.isnan().any() for block in blocks)


def test_peak_memory_excludes_the_results(device):
    def call():
        passing = torch.ones(24 << 20, dtype=torch.uint8, device=device)
        return {"output": torch.ones(8 << 20, dtype=torch.uint8, device=device) * passing[0]}

    torch.ones(100 << 20, dtype=torch.uint8, device=device)  # an earlier peak
    peak = clock.clock_of(device).peak_memory(call)
    if peak is None:
        pytest.skip("not Linux")
    # The 8 MiB of ones are temporary, too.
    assert 24 <= peak <= 40


def test_a_bar_and_a_cell_per_ratio():
    row = {
        **{"case": "case", "pass": "forward", "mode": "", "discarded": 4, "busy": 1},
        **{"base": PLAIN, "ms": {OURS: [13.0, 10.0, 12.0]}, "paper": 1.3, "missing": {}},
        "ratio": {OURS: [1.1, 1.2, 1.3], TORCHVISION: [3.0, 3.1, 3.3]},
        "ours_to": {PLAIN: [1.1, 1.2, 1.3], TORCHVISION: [0.3, 0.4, 0.5]},
        "times_faster": {PLAIN: [0.7, 0.8, 0.9], TORCHVISION: [2.0, 2.5, 3.0]},
        "memory_mib": {OURS: 9.4, PLAIN: None, TORCHVISION: 57.0},
    }
    head, line = table.cells([row])
    assert dict(zip(head, line, strict=True)) == {
        "case": "case, forward",
        "ms": "12",
        "ours / plain": "1.20 (1.10-1.30)",
        "torchvision / ours": "2.50 (2.00-3.00)",
        "paper": "1.3",
        "MiB ours, plain, torchvision": "9, -, 57",
        "discarded": "4, 1 busy kept",
    }
    (axes,) = plot.draw({"rows": [row]}).axes
    assert [round(bar.get_x() + bar.get_width(), 6) for bar in axes.patches] == [1.2, 3.1]


def test_fills_in_a_page(tmp_path, one_thread):
    smoke(ops, "--json", tmp_path / "results" / "x.json", "--only", "small 64ch 56x56, ")
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- results/x.json: , forward + backward -->\nold\n<!-- end -->\nb\n")
    filled = table.filled(page)
    page.write_text(filled)
    assert table.filled(page) == filled
    assert filled.startswith("a\n<!-- results/x.json: , forward + backward -->\n| case")
    assert "old" not in filled and filled.endswith("<!-- end -->\nb\n")
    assert sum(line.startswith("| small") for line in filled.splitlines()) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page):
    assert table.filled(page) == page.read_text(), f"run python -m benchmarks.table {page}"


# The script for a GPU.


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_needs_one(tmp_path):
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        gpu.main([str(tmp_path)])


@pytest.fixture
def with_gpu(monkeypatch):
    """The script as on a machine with a GPU and an operator library for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "machine", lambda: "a GPU")
    monkeypatch.setattr(gpu, "needs_kernels", lambda run: None)
    return gpu


def test_gpu_records_failures_and_continues(with_gpu, tmp_path, monkeypatch):
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
def test_gpu_refuses_a_library_without_kernels(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="no kernels"):
        gpu.needs_kernels(gpu.Run(tmp_path, "tests", 60))


@pytest.mark.slow
def test_gpu_reads_the_summary_of_pytest(with_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PYTEST", (*gpu.PYTEST, "-k", "test_make_targets_exist"))
    ((_, command),) = gpu.tests(gpu.Run(tmp_path, "tests", 600), tmp_path)
    assert "1 passed" in command()


@pytest.mark.slow
def test_gpu_sanitizes_something():
    """The selected tests exist; here they are found by their names on the CPU."""
    folder, flag, selection = gpu.SANITIZED
    selected = subprocess.run(
        [*gpu.PYTEST, "--collect-only", folder, flag, selection.replace("cuda", "cpu")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    assert all(f"tests/ops/test_{name}.py" in selected for name in ("types", "ps_roi_pool"))


@pytest.mark.parametrize("benchmark", [ops, models])
def test_gpu_calls_the_benchmarks(benchmark, tmp_path):
    name = benchmark.__name__.rpartition(".")[2]

    def run(python, *call):
        assert (python, *call[:2]) == (sys.executable, "-m", benchmark.__name__)
        args = command.parser(name, "", rounds=9).parse_args([str(part) for part in call[2:]])
        assert args.device.type == "cuda" and len(list(benchmark.rows(args))) > 10
        args.json.write_text('{"rows": [1, 2]}')

    for dtype, step in gpu.STEPS[name](run, tmp_path):
        assert step() == {"file": f"{name}-{dtype}.json", "rows": 2}


# A training beside a busy process.

# Stands for the training: its time tells its threads, wait policy and company.
TRAINING = """
import json, os, sys
from pathlib import Path
parent = os.getppid()
siblings = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in siblings]
busy = any(command.endswith(b"pass\\0") for command in commands)
policy = os.environ.get("OMP_WAIT_POLICY", os.environ.get("GOMP_SPINCOUNT"))
time = {"300000": 1, "active": 2, "passive": 4, "1000": 8}[policy]
time *= int(os.environ["OMP_NUM_THREADS"])
lines = {"total_loss": 1}, {"time": 99}, {"time": 10 * time if busy else time}
Path(sys.argv[1], "metrics.json").write_text("\\n".join(map(json.dumps, lines)))
"""


def test_soft_nms_prints_a_row_per_size(one_thread, capsys):
    soft_nms.main(["--boxes", "0", "50", "--rounds", "1"])
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["0", "50"]
    assert all("NMS" in row and "linear" in row and "gaussian" in row for row in rows)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_busy_machine_measures_every_kind_and_continues(tmp_path, monkeypatch, capsys):
    def training(folder, steps):
        return [sys.executable, "-c", TRAINING, str(folder), str(steps)]

    monkeypatch.setattr(busy_machine, "training", training)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # of the user's shell, and must not count
    file = tmp_path / "busy.json"
    busy_machine.main(["--rounds", "1", "--json", str(file)])
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[-8:]]
    assert lines[0] == ["1 thread, spin", "1.000", "10.000", "10.00", "1.00", "10.00"]
    assert lines[-1] == ["2 threads, brief", "16.000", "160.000", "10.00", "16.00", "160.00"]
    busy_machine.main(["--rounds", "2", "--json", str(file)])
    assert "round 1" not in capsys.readouterr().out
    data = json.loads(file.read_text())
    assert [len(row["seconds"]) for row in data["rows"]] == [2] * 16
    assert data["machine"] and data["commit"]


def test_busy_machine_trains_a_config_that_exists(tmp_path):
    words = busy_machine.training(tmp_path, 5)
    args = train.parser().parse_args(words[words.index("train") + 1 :])
    cfg = read_config(ROOT / args.config_file, args.opts)
    assert (cfg.SOLVER.MAX_ITER, tmp_path) == (5, Path(cfg.OUTPUT_DIR))
