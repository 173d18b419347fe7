"""d2-deformable train --dry-run: what it prints, its exit status, and that it writes nothing."""

import re
from pathlib import Path

import pytest
import torch

from d2_deformable.analysis import training_cost
from d2_deformable.analysis.training_cost import duration, of_one_process
from d2_deformable.cli.main import main
from d2_deformable.config import read_config
from d2_deformable.engine import Trainer

CONFIG = Path(__file__).parents[2] / "configs/quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml"
SMALL = {
    "SOLVER.IMS_PER_BATCH": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES": 4,
    "DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES": 2,
}


@pytest.fixture
def dry_run(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setattr(training_cost, "STEPS", 3)

    def dry_run(*given, flags=("--dry-run",)):
        values = [str(x) for pair in SMALL.items() for x in pair]
        output = ["OUTPUT_DIR", str(tmp_path / "output")]
        main(["train", *flags, "--config-file", str(CONFIG), *output, *values, *given])

    yield dry_run
    assert not (tmp_path / "output").exists()


def stopped(run, *args, **kwargs):
    with pytest.raises(SystemExit) as error:
        run(*args, **kwargs)
    return str(error.value.code)


def test_prints_data_schedule_time_memory_and_network(dry_run, capsys):
    dry_run("SOLVER.WARMUP_ITERS", "100", "SOLVER.STEPS", "(1300,1500)", "SOLVER.MAX_ITER", "1600")
    shown = capsys.readouterr().out
    assert "warped_shapes_train: 4 images" in shown and "warped_shapes_val: 2 images" in shown
    assert "1,600 iterations of 2 images: each of the 4 training images is seen 800.0 " in shown
    table = re.findall(r"^ +([\d,]+) +([\d.e-]+)  (start|end of.*|step|last.*)$", shown, re.M)
    assert [row[0] for row in table] == ["0", "100", "1,300", "1,500", "1,599"]
    base = float(table[1][1])
    assert [float(row[1]) / base for row in table[2:]] == pytest.approx([0.1, 0.01, 0.01])
    times = re.search(r"  ([\d.e-]+) s for a step, of which .*; ([\d.]+) images per", shown)
    step, rate = map(float, times.groups())
    assert rate == pytest.approx(2 / step, rel=0.02)
    assert re.search(r"[\d.]+ GiB of (GPU )?memory at the peak", shown)
    assert "3.56 million parameters" in shown and "0.49 billion multiply-adds" in shown
    assert shown.endswith("no error: the training can start\n")


def test_stops_where_the_training_would(dry_run, tmp_path):
    assert "MODEL.WEIGHTS is empty" in stopped(dry_run, "MODEL.RESNETS.NORM", "FrozenBN")
    assert "leave out --eval-only" in stopped(dry_run, flags=("--dry-run", "--resume"))
    dry_run()
    file = next(tmp_path.glob("datasets/warped_shapes/*train*/*.png"))
    file.write_bytes(file.read_bytes()[:200])
    assert "the training would stop, see ERROR above" in stopped(dry_run)


def test_a_step_that_does_not_fit_is_one_sentence(dry_run, monkeypatch):
    def run_step(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "run_step", run_step)
    assert "SOLVER.IMS_PER_BATCH is 2, and a step needs more memory" in stopped(dry_run)


@pytest.mark.parametrize("reference, batch, iterations", [(0, 1, 1600), (2, 2, 800)])
def test_several_processes_share_the_batch(reference, batch, iterations):
    overrides = ["SOLVER.REFERENCE_WORLD_SIZE", reference, "SOLVER.IMS_PER_BATCH", 4]
    cfg = of_one_process(read_config(CONFIG, [*overrides, "SOLVER.MAX_ITER", 1600]), 4)
    assert batch == cfg.SOLVER.IMS_PER_BATCH and iterations == cfg.SOLVER.MAX_ITER


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.034, "0.034 s"),
        (45, "45 s"),
        (60, "1 min"),
        (4000, "1 h 6 min"),
        (90000, "1 day 1 h"),
        (200000, "2 days 7 h"),
    ],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text
