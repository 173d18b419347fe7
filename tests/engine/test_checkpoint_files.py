"""Checkpoints survive crashes, and a damaged one is not resumed from."""

import os
import shutil
import signal
import subprocess
import sys

import detectron2.utils.comm as comm
import pytest
import torch
from detectron2.config import get_cfg

from d2_deformable.checkpoint import FileFormatError
from d2_deformable.engine.checkpoint_files import checkpoint_to_resume, find_checkpoint
from d2_deformable.engine.checkpointer import TrainingCheckpointer

ITERATIONS = (99, 199, 299)


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, the last one named by last_checkpoint."""
    save(tmp_path, *ITERATIONS)
    for age, iteration in enumerate(reversed(ITERATIONS)):
        os.utime(tmp_path / f"model_{iteration:07d}.pth", (1e9 - age, 1e9 - age))
    return tmp_path


def save(folder, *iterations, **options):
    checkpointer = TrainingCheckpointer(torch.nn.Linear(3, 3), str(folder), **options)
    for iteration in iterations:
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "one bit": flip,
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "text": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1"),
}


def test_sha256sum_accepts_what_is_written(folder):
    files = [f"model_{iteration:07d}.pth.sha256" for iteration in ITERATIONS]
    subprocess.run(["sha256sum", "--check", "--strict", *files], cwd=folder, check=True)


@pytest.mark.parametrize("digest", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(folder, caplog, damage, digest):
    last = folder / "model_0000299.pth"
    DAMAGE[damage](last)
    if not digest:
        (folder / f"{last.name}.sha256").unlink()
    assert find_checkpoint(folder) == folder / "model_0000199.pth"
    assert f"{last} is damaged" in caplog.text


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\xff\xfe\0", b"model_0000399.pth", b"../../nowhere", b"\0" * 20, b"x" * 5000],
)
def test_a_damaged_last_checkpoint_does_not_start_anew(folder, caplog, content):
    if content is None:
        (folder / "last_checkpoint").unlink()
    else:
        (folder / "last_checkpoint").write_bytes(content)
    assert find_checkpoint(folder) == folder / "model_0000299.pth"
    assert f"{folder}/last_checkpoint" in caplog.text


@pytest.mark.parametrize("name", ["model_0000199.pth\n", "/moved/since/model_0000199.pth"])
def test_last_checkpoint_chooses(folder, name):
    (folder / "last_checkpoint").write_text(name)
    assert find_checkpoint(folder) == folder / "model_0000199.pth"


def test_copies_are_tried_in_the_order_of_their_iterations(folder):
    """Copying a folder may give its files any times."""
    for age, iteration in enumerate(ITERATIONS):
        os.utime(folder / f"model_{iteration:07d}.pth", (1e9 - age, 1e9 - age))
    flip(folder / "model_0000299.pth")
    assert find_checkpoint(folder) == folder / "model_0000199.pth"


@pytest.mark.parametrize(("age", "first"), [(-1, "final"), (0.5, "0000299"), (1.5, "0000199")])
def test_a_checkpoint_without_iteration_is_placed_by_its_time(folder, age, first):
    shutil.copy(folder / "model_0000299.pth", folder / "model_final.pth")
    os.utime(folder / "model_final.pth", (1e9 - age, 1e9 - age))
    (folder / "last_checkpoint").unlink()
    shutil.copy(folder / "model_0000099.pth", folder / "model_best.pth")  # of any iteration
    if age > 1:
        flip(folder / "model_0000299.pth")
    assert find_checkpoint(folder) == folder / f"model_{first}.pth"


def test_a_link_to_nowhere_is_passed_over(folder):
    (folder / "model_0000399.pth").symlink_to("nowhere.pth")
    assert find_checkpoint(folder) == folder / "model_0000299.pth"


def test_without_an_undamaged_checkpoint_nothing_is_overwritten(folder):
    for iteration in ITERATIONS:
        flip(folder / f"model_{iteration:07d}.pth")
    with pytest.raises(FileFormatError, match=f"^{folder}: every checkpoint is damaged .*_0000099"):
        find_checkpoint(folder)


def test_a_folder_without_checkpoints(tmp_path, caplog):
    (tmp_path / "model_ema.pth").write_bytes(b"weights only")
    assert find_checkpoint(tmp_path) is None
    assert not caplog.records


def test_machines_must_share_the_folder(folder, monkeypatch):
    """Otherwise one process would resume and another start anew."""
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(folder)
    answers = iter([[folder / "model_0000001.pth"], [True, False]])
    monkeypatch.setattr(comm, "all_gather", lambda _: next(answers))
    with pytest.raises(ValueError, match=r"which process 1 does not see. Name a folder that all"):
        checkpoint_to_resume(cfg)


def test_the_last_ones_are_kept(tmp_path):
    save(tmp_path, 499)  # by an earlier training, which this one does not delete
    save(tmp_path, *ITERATIONS, keep=2)
    (tmp_path / "model_best.pth").write_bytes(b"")
    save(tmp_path, 399, keep=2)
    names = [f"model_{i:07d}.pth" for i in (299, 399, 499)]
    digests = [f"{name}.sha256" for name in names]
    assert {f.name for f in tmp_path.iterdir()} == {
        *names,
        *digests,
        "model_best.pth",
        "last_checkpoint",
    }


FULL_DISK = """
import resource, signal, sys, torch
from d2_deformable.engine.checkpointer import TrainingCheckpointer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
TrainingCheckpointer(torch.nn.Linear(300, 30), sys.argv[1]).save("model_0000399", iteration=399)
"""


def test_a_full_disk_leaves_the_last_checkpoint(folder):
    before = {f.name for f in folder.iterdir()}
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], capture_output=True, text=True
    )
    assert (
        run.returncode == 1 and "OSError: [Errno 27] File too large" in run.stderr.splitlines()[-1]
    )
    assert {f.name for f in folder.iterdir()} == before
    assert find_checkpoint(folder) == folder / "model_0000299.pth"


def save_and_die(folder, after):
    """Save the last checkpoint again in a process that is killed before one of its file operations.

    Returns:
        whether it was killed.
    """
    if not (child := os.fork()):
        operations = iter(range(after))

        def kill(event, arguments):
            of_a_file = event in ("open", "os.rename", "os.remove")
            if of_a_file and str(folder) in str(arguments[0]) and next(operations, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        try:
            save(folder, ITERATIONS[-1])
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_kill_at_any_moment_leaves_a_checkpoint(folder, caplog):
    after, content = 0, (folder / "model_0000299.pth").read_bytes()
    while save_and_die(folder, after):
        assert find_checkpoint(folder) == folder / "model_0000299.pth"
        after += 1
    assert after > 6
    assert (folder / "model_0000299.pth").read_bytes() != content  # the weights are random
    assert not caplog.records
    save(folder, 399)
    assert not list(folder.glob(".*"))  # parts of files
