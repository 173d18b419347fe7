"""The queue of trainings and its page, with a stub in place of train_net.py."""

import fcntl
import json
import subprocess
import time
from pathlib import Path

import pytest

from d2_deformable.analysis import results_page
from d2_deformable.analysis.results import BUDGETS, ROWS, Row, run_queue
from d2_deformable.analysis.results_page import mean_and_spread, write_page
from d2_deformable.utils import provenance
from yamls import CONFIGS, load

PLAIN, DEFORM = Row("cards", "rfcn", ""), Row("cards", "rfcn", "dconv3_dpool")
DEEPLAB = Row("dubai_seg", "deeplab", "")
STUB = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("OUTPUT_DIR") + 1])
seed = int(sys.argv[sys.argv.index("SEED") + 1])
with open("calls.txt", "a") as calls:
    print(folder.name, "--resume" in sys.argv, os.environ["OMP_NUM_THREADS"], file=calls)
while time.process_time() < 0.1:
    pass
{action}
task = "sem_seg/mIoU" if "deeplab" in folder.name else "voc/AP50"
lines = [{{"iteration": i, "total_loss": 200.0 - i}} for i in range(200)]
if "dconv3" in folder.name:
    for i, line in enumerate(lines):
        line.update({{"offsets/a/mean": 0.5 * seed, "offsets/a/p99": i, "offsets/a/outside": 0.25}})
lines.append({{"iteration": 200, task: 40.0 + seed, "voc/AP50-cat": float("nan"),
              "voc/AP": 20.0, "voc/AP70": 30.0, "sem_seg/pACC": 50.0}})
(folder / "metrics.json").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(folder / "config.yaml").write_text("VERSION: 2")
(folder / "model_final.pth").touch()
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs").mkdir()
    blocks = [f"by hand: {d}\n<!-- begin {d} -->\nold\n<!-- end {d} -->\n" for d in BUDGETS]
    (tmp_path / "docs/RESULTS.md").write_text("".join(blocks) + "the end\n")
    stub(tmp_path)
    return tmp_path


def stub(root, action=""):
    (root / "train_net.py").write_text(STUB.format(action=action))


def queue(root, rows, seeds=(1,), jobs=1):
    return list(run_queue(root, rows, seeds, jobs, seconds_between_looks=0.01))


def calls(root):
    return (root / "calls.txt").read_text().splitlines()


def result(root, title):
    # JSON knows no NaN; Python's reader would take it.
    return json.loads((root / f"docs/results/{title}.json").read_text(), parse_constant=pytest.fail)


def test_every_row_is_a_yaml_with_a_budget():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        cfg = load(CONFIGS / "quick" / f"{row.yaml}.yaml")
        cfg.merge_from_list([*BUDGETS[row.dataset], *row.overrides])
        assert f"{row.dataset}_val" in cfg.DATASETS.TEST


def test_one_seed_of_everything_first(root):
    done = queue(root, [PLAIN, DEEPLAB], seeds=(1, 2))
    names = ["cards_rfcn_R_18", "dubai_seg_deeplab_R_18"]
    assert done == [(f"{name}_seed{seed}", "") for seed in (1, 2) for name in names]
    assert calls(root)[0] == "cards_rfcn_R_18_seed1 True 1"


def test_what_a_json_holds(root):
    queue(root, [DEFORM], seeds=[2])
    found = result(root, "cards_rfcn_R_18_dconv3_dpool_seed2")
    assert found["command"] == (
        "OMP_NUM_THREADS=1 python train_net.py --config-file "
        "configs/quick/cards_rfcn_R_18_dconv3_dpool.yaml SEED 2 SOLVER.MAX_ITER "
        f"{BUDGETS['cards'][1]} SOLVER.STEPS '{BUDGETS['cards'][3]}' SOLVER.CHECKPOINT_PERIOD 100 "
        "OUTPUT_DIR output/results/cards_rfcn_R_18_dconv3_dpool_seed2"
    )
    assert (found["dataset"], found["network"]) == ("cards", "rfcn")
    assert (found["variant"], found["seed"], found["iterations"]) == ("dconv3_dpool", 2, 200)
    assert found["results"]["voc"] == {"AP": 20, "AP50": 42, "AP70": 30, "AP50-cat": None}
    assert len(found["loss"]) == 50
    assert (found["loss"][0], found["loss"][-1]) == ([1, 200.0], [200, 1.0])
    offsets = {"offsets/a/p99": 199, "offsets/a/mean": 1.0, "offsets/a/outside": 0.25}
    assert found["offsets"] == offsets
    assert (found["machine"], found["versions"]) == (provenance.machine(), provenance.versions())
    assert 0.1 <= found["cpu_seconds"] < 1 and found["processes"] == 1


def test_a_control_experiment_is_a_yaml_with_overrides(root):
    row = Row("cards", "rfcn", "dpool", "zero_offsets", ("SOLVER.BASE_LR", "0"))
    queue(root, [row])
    found = result(root, "cards_rfcn_R_18_dpool_zero_offsets_seed1")
    assert "cards_rfcn_R_18_dpool.yaml SEED 1" in found["command"]
    assert " SOLVER.BASE_LR 0 " in found["command"]
    write_page(root)
    assert "| dpool, zero offsets |" in (root / "docs/RESULTS.md").read_text()


def test_what_is_recorded_is_not_trained_again(root, monkeypatch):
    queue(root, [PLAIN])
    assert queue(root, [PLAIN, DEFORM]) == [("cards_rfcn_R_18_dconv3_dpool_seed1", "")]
    monkeypatch.setitem(BUDGETS, "cards", ("SOLVER.MAX_ITER", "7"))
    ((_, problem),) = queue(root, [PLAIN])
    assert "output/results/cards_rfcn_R_18_seed1 holds a training of another command" in problem
    assert len(calls(root)) == 2


def test_a_failing_row_stops_no_other_and_is_tried_again(root):
    stub(root, 'if "dconv3" in folder.name: print("out of luck\\n"); sys.exit(3)')
    assert queue(root, [DEFORM, PLAIN]) == [
        ("cards_rfcn_R_18_dconv3_dpool_seed1", "exit status 3: out of luck"),
        ("cards_rfcn_R_18_seed1", ""),
    ]
    stub(root)
    assert queue(root, [DEFORM, PLAIN]) == [("cards_rfcn_R_18_dconv3_dpool_seed1", "")]
    found = result(root, "cards_rfcn_R_18_dconv3_dpool_seed1")
    assert found["cpu_seconds"] >= 0.2 and found["processes"] == 2


def test_a_training_without_evaluation_is_a_failure(root):
    stub(root, "folder = Path('elsewhere'); folder.mkdir()")
    (root / "output/results/cards_rfcn_R_18_seed1").mkdir(parents=True)
    (root / "output/results/cards_rfcn_R_18_seed1/config.yaml").write_text("VERSION: 2")
    (root / "output/results/cards_rfcn_R_18_seed1/model_final.pth").touch()
    ((_, problem),) = queue(root, [PLAIN])
    assert problem == "it ended without an evaluation"
    assert not (root / "docs/results").exists()


def test_an_interrupted_training_goes_on_and_its_seconds_count(root):
    stub(root, "Path('busy').touch(); time.sleep(60)")
    trainings = run_queue(root, [PLAIN], [1], seconds_between_looks=0.01)

    def until_busy(_):
        # The queue looks after its trainings between two sleeps; this is one of them.
        for _ in range(500):
            sleep(0.01)
            if (root / "busy").exists():
                raise KeyboardInterrupt

    sleep = time.sleep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", until_busy)
        with pytest.raises(KeyboardInterrupt):
            next(trainings)
    (first,) = json.loads(
        (root / "output/results/cards_rfcn_R_18_seed1/processes.json").read_text()
    )
    assert first["cpu_seconds"] >= 0.1
    stub(root)
    assert queue(root, [PLAIN]) == [("cards_rfcn_R_18_seed1", "")]
    found = result(root, "cards_rfcn_R_18_seed1")
    assert found["cpu_seconds"] >= 0.2 and found["processes"] == 2


def test_seconds_are_written_down_while_it_trains(root):
    """A queue that is killed cannot ask afterwards."""
    if not Path("/proc/self/stat").is_file():
        pytest.skip("only Linux tells the CPU seconds of a running process")
    stub(root, "log = folder / 'processes.json'\nfor i in range(400):\n    time.sleep(0.01)\n"
         "    if json.loads(log.read_text())[-1]['cpu_seconds'] >= 0.1: break\n"
         "else: sys.exit('nobody counts')")  # fmt: skip
    assert queue(root, [PLAIN]) == [("cards_rfcn_R_18_seed1", "")]


def test_what_another_process_trains_is_left_alone(root):
    folder = root / "output/results/cards_rfcn_R_18_seed1"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert queue(root, [PLAIN, DEEPLAB]) == [
            ("cards_rfcn_R_18_seed1", "another process trains it"),
            ("dubai_seg_deeplab_R_18_seed1", ""),
        ]


def test_several_at_a_time(root):
    wait = "folder.joinpath('here').touch()\nfor i in range(500):\n    time.sleep(0.01)\n"
    wait += "    if len(list(folder.parent.glob('*/here'))) == 2: break\nelse: sys.exit('alone')"
    stub(root, wait)
    assert sorted(queue(root, [PLAIN, DEFORM], jobs=2)) == [
        ("cards_rfcn_R_18_dconv3_dpool_seed1", ""),
        ("cards_rfcn_R_18_seed1", ""),
    ]


def test_the_page_shows_every_json_and_keeps_what_is_by_hand(root):
    write_page(root)
    assert (root / "docs/RESULTS.md").read_text().count("Not measured yet.") == 2
    queue(root, [DEFORM, PLAIN], seeds=(1, 2, 3))
    for _ in range(2):  # the second changes nothing
        write_page(root)
        page = (root / "docs/RESULTS.md").read_text()
        rows = [[c.strip() for c in line.split("|")[1:-1]] for line in page.splitlines()]
        rows = [row[:6] for row in rows if row and row[0] == "R-FCN"]
        assert rows == [
            ["R-FCN", "plain", "20.0 ± 0.0", "42.0 ± 1.0", "30.0 ± 0.0", "3"],
            ["R-FCN", "dconv3_dpool", "20.0 ± 0.0", "42.0 ± 1.0", "30.0 ± 0.0", "3"],
            ["R-FCN", "dconv3_dpool", "a", "1.000", "199.000", "25.0%"],
        ]
        assert page.startswith("by hand: cards\n") and page.endswith("the end\n")
        assert page.count("Not measured yet.") == 1 and "old" not in page
        assert "- Iterations: 200\n" in page and provenance.machine() in page
    assert (root / "docs/results/cards.png").stat().st_size > 1000
    assert not (root / "docs/results/dubai_seg.png").exists()


def test_the_picture_shows_the_mean_loss_of_every_row():
    def run(variant, *losses):
        loss = [[20 * i, value] for i, value in enumerate(losses)]
        return {"network": "rfcn", "variant": variant, "control": "", "loss": loss}

    (axes,) = results_page.loss_curves([run("", 4, 2), run("", 6, 4), run("dpool", 1, 0)]).axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert curves == {"plain": [[0, 5], [20, 3]], "dpool": [[0, 1], [20, 0]]}


def test_a_page_without_a_block_is_an_error(root):
    (root / "docs/RESULTS.md").write_text("<!-- begin cards -->")
    with pytest.raises(ValueError, match="RESULTS.md lacks a block <!-- begin cards -->"):
        write_page(root)


def test_mean_and_spread():
    assert mean_and_spread([41.26]) == "41.3"
    assert mean_and_spread([40.0, 42.0]) == "41.0 ± 1.4"


def test_the_commit_is_dirty_by_code_not_by_results(tmp_path, monkeypatch):
    def git(*args):
        settings = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *settings, *args], cwd=tmp_path, check=True, capture_output=True)

    written = ("docs/RESULTS.md", "benchmarks/results/x.json")
    for name in ("package/provenance.py", *written):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("old")
    git("init")
    git("add", "-A")
    git("commit", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "package/provenance.py"))
    for name in written:
        (tmp_path / name).write_text("new")
    assert "dirty" not in provenance.commit()
    (tmp_path / "package/provenance.py").write_text("new")
    assert provenance.commit().endswith("-dirty")
