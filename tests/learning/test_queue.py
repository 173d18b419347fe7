"""The training queue, with a stub instead of the training itself."""

import fcntl
import hashlib
import json
import time
from pathlib import Path

import pytest

from benchmarks.learning import queue as learning
from benchmarks.learning import records
from benchmarks.learning.study import PLAN, Repetition, parse

FIRST = Repetition("clothing_deeplab", 1, 1, ("plain", "dconv3"))
SECOND = Repetition("clothing_deeplab", 2, 1, ("plain",))
STRAIGHT = Repetition("clothing_deeplab_straight", 0, 1, ("plain", "dconv3"))
STUB = """
import hashlib, json, os, sys, time
from pathlib import Path
name = sys.argv[1]
folder = Path("output/learning", name)
with open("calls.txt", "a") as calls:
    print(name, os.environ["OMP_NUM_THREADS"], os.nice(0), file=calls)
while time.process_time() < 0.1:
    pass
{action}
(folder / "model_final.pth").write_text(name)
result = {{"command": json.loads((folder / "processes.json").read_text())[-1]["command"]}}
if "branch" in name:
    start = Path("output/learning", name.split("_branch")[0], "model_final.pth")
    if "straight" in name:
        start = Path("output/learning/R-50-thin.pth")
    result["start_sha256"] = hashlib.sha256(start.read_bytes()).hexdigest()
(folder / "result.json").write_text(json.dumps(result))
"""
NAMES = [run.name for run in FIRST.runs]


@pytest.fixture
def root(tmp_path):
    package = tmp_path / "benchmarks/learning"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    stub(tmp_path)
    return tmp_path


def stub(root, action=""):
    (root / "benchmarks/learning/run.py").write_text(STUB.format(action=action))


def trained(root, plan=(FIRST,), workers=1):
    found = learning.run_queue(root, plan, workers, seconds_between_looks=0.01)
    return [(run.name, problem) for run, problem in found]


def calls(root):
    return [line.split() for line in (root / "calls.txt").read_text().splitlines()]


def record(root, name):
    return json.loads((root / f"docs/results/{name}.json").read_text())


def test_every_run_has_its_name():
    runs = [run for repetition in PLAN for run in repetition.runs]
    assert all(parse(run.name) == run for run in runs)
    with pytest.raises(ValueError, match="no_such: no such run"):
        parse("no_such")


def test_a_trunk_comes_before_its_arms(root):
    assert trained(root, [FIRST, SECOND]) == [
        (name, "") for name in [*NAMES, SECOND.trunk.name, SECOND.branches[0].name]
    ]
    assert calls(root) == [[name, "1", "19"] for name, _, _ in calls(root)]
    found = record(root, NAMES[2])
    assert found["cpu_seconds"] >= 0.1 and found["processes"] == 1
    assert found["start_sha256"] == hashlib.sha256(NAMES[0].encode()).hexdigest()


def test_without_a_trunk_arms_start_from_the_backbone(root):
    backbone = root / learning.BACKBONE
    backbone.parent.mkdir(parents=True)
    backbone.write_text("pretrained")
    assert trained(root, [STRAIGHT]) == [(run.name, "") for run in STRAIGHT.runs]
    assert trained(root, [STRAIGHT]) == []
    backbone.write_text("pretrained otherwise")
    records.path_of(root, STRAIGHT.runs[1]).unlink()
    assert trained(root, [STRAIGHT]) == [(run.name, "") for run in STRAIGHT.runs]


def test_what_is_recorded_is_not_trained_again(root):
    trained(root, [FIRST])
    assert trained(root, [FIRST]) == []
    (root / FIRST.trunk.checkpoint).unlink()  # no longer needed
    assert trained(root, [FIRST]) == []


def test_another_command_is_trained_again(root):
    trained(root, [FIRST])
    file = records.path_of(root, FIRST.branches[1])
    file.write_text(json.dumps(record(root, NAMES[2]) | {"command": "another"}))
    assert trained(root, [FIRST]) == [(NAMES[2], "")]


@pytest.mark.slow
def test_arms_of_another_trunk_are_trained_again_where_some_are_missing(root):
    trained(root, [FIRST])
    records.path_of(root, FIRST.branches[1]).unlink()
    (root / FIRST.trunk.checkpoint).write_text("trained again, with other bits")
    assert trained(root, [FIRST]) == [(NAMES[1], ""), (NAMES[2], "")]


@pytest.mark.slow
def test_a_lost_trunk_is_trained_again_only_where_arms_are_missing(root):
    trained(root, [FIRST])
    records.path_of(root, FIRST.branches[1]).unlink()
    (root / FIRST.trunk.checkpoint).unlink()
    assert trained(root, [FIRST]) == [(NAMES[0], ""), (NAMES[2], "")]


@pytest.mark.slow
def test_a_failing_run_stops_no_other_and_is_tried_again(root):
    stub(root, 'if name.endswith("plain"): print("out of luck\\n"); sys.exit(3)')
    assert trained(root) == [
        (NAMES[0], ""),
        (NAMES[1], "exit status 3: out of luck"),
        (NAMES[2], ""),
    ]
    stub(root)
    assert trained(root) == [(NAMES[1], "")]
    assert record(root, NAMES[1])["cpu_seconds"] >= 0.2
    assert record(root, NAMES[1])["processes"] == 2


def test_arms_of_a_failing_trunk_wait(root):
    stub(root, "sys.exit(3)")
    assert [name for name, _ in trained(root)] == [NAMES[0]]


@pytest.mark.slow
def test_an_interrupted_run_continues_and_its_seconds_count(root):
    stub(root, "Path('busy').touch(); time.sleep(60)")
    trainings = learning.run_queue(root, [FIRST], seconds_between_looks=0.01)

    def until_busy(_):
        # The queue checks its runs between sleeps; this replaces one sleep.
        for _ in range(500):
            sleep(0.01)
            if (root / "busy").exists():
                raise KeyboardInterrupt

    sleep = time.sleep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", until_busy)
        with pytest.raises(KeyboardInterrupt):
            next(trainings)
    (first,) = json.loads((root / FIRST.trunk.output / "processes.json").read_text())
    assert first["cpu_seconds"] >= 0.1
    stub(root)
    assert trained(root)[0] == (NAMES[0], "")
    assert record(root, NAMES[0])["cpu_seconds"] >= 0.2
    assert record(root, NAMES[0])["processes"] == 2


def test_seconds_are_recorded_while_it_trains(root):
    """A queue that is killed could not record them afterwards."""
    if not Path("/proc/self/stat").is_file():
        pytest.skip("only Linux reports the CPU seconds of a running process")
    stub(root, "log = folder / 'processes.json'\nfor i in range(400):\n    time.sleep(0.01)\n"
         "    if json.loads(log.read_text())[-1]['cpu_seconds'] >= 0.1: break\n"
         "else: sys.exit('no CPU seconds recorded')")  # fmt: skip
    assert trained(root)[0] == (NAMES[0], "")


def test_what_another_process_trains_is_left_alone(root):
    folder = root / FIRST.trunk.output
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert trained(root, [FIRST, SECOND])[0] == (NAMES[0], "another process is training it")
    assert record(root, SECOND.branches[0].name)


def test_several_at_a_time(root):
    trained(root, [FIRST])
    for run in FIRST.branches:
        records.path_of(root, run).unlink()
    wait = "folder.joinpath('here').touch()\nfor i in range(500):\n    time.sleep(0.01)\n"
    wait += "    if len(list(folder.parent.glob('*/here'))) == 2: break\nelse: sys.exit('alone')"
    stub(root, wait)
    assert sorted(trained(root, workers=2)) == sorted((name, "") for name in NAMES[1:])


def test_progress_shows_what_is_left(root):
    assert "3 runs left, about 0.0 CPU hours, and 3 of a kind" in learning.progress(root, [FIRST])
    trained(root)
    lines = learning.progress(root, [FIRST, SECOND]).splitlines()
    assert lines[:3] == [f"done {name}" for name in NAMES]
    assert lines[-1].startswith("2 runs left") and "no record yet" not in lines[-1]
