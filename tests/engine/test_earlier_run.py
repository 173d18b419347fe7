"""A new training keeps what an earlier one left in its folder; a job continues only its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from d2_deformable.cli import train
from d2_deformable.engine.earlier_run import begun_by, put_aside, put_back
from d2_deformable.utils.files import reserved
from yamls import CONFIGS

NETWORK = str(CONFIGS / "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml")
FILES = ["model_0000001.pth", "model_0000001.pth.sha256", "model_final.pth", "model_ema.pth"]
FILES += ["last_checkpoint", "metrics.json", "events.out.tfevents.1.host", "config.yaml"]
OTHERS = ["log.txt", "pretrained.pth", "pretrained.pth.sha256"]

HOLDER = """
import sys
from d2_deformable.utils.files import reserved
with reserved(sys.argv[1], "training"):
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", str(tmp_path)
    return cfg


def leave(folder, text=""):
    """A training in the folder: its files, all of the same content."""
    for name in (*FILES, *OTHERS):
        (folder / name).write_text(text)
    (folder / "inference").mkdir()
    (folder / "inference/results.json").write_text(text)


def names(folder):
    return sorted(file.name for file in folder.iterdir() if file.name != "config.yaml")


def check_aside(folder, text=""):
    assert sorted(file.name for file in folder.iterdir()) == sorted([*FILES, "inference"])
    assert {file.read_text() for file in folder.rglob("*.*") if file.is_file()} == {text}


def test_files_of_each_training_stay_together(cfg, tmp_path):
    for number in "12":
        leave(tmp_path, number)
        put_aside(cfg)
    assert names(tmp_path) == sorted(["earlier_1", "earlier_2", *OTHERS])
    for number in "12":
        check_aside(tmp_path / f"earlier_{number}", number)


@pytest.mark.parametrize("name", ["metrics.json", "events.out.tfevents.1", *OTHERS])
def test_a_folder_without_a_training_stays_as_it_is(cfg, tmp_path, name):
    (tmp_path / "config.yaml").touch()
    (tmp_path / name).touch()
    put_aside(cfg)
    assert names(tmp_path) == [name]


def test_the_config_may_be_read_afterwards(cfg, tmp_path):
    leave(tmp_path)
    put_aside(cfg)
    assert (tmp_path / "config.yaml").is_file()  # --config-file may name it


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("moved", range(len(FILES) + 1))
def test_a_start_that_is_killed_separates_nothing(cfg, tmp_path, monkeypatch, moved, resume):
    def rename(self, target):
        if renamed.count(True) == moved:
            raise KeyboardInterrupt
        renamed.append(True)
        return original(self, target)

    leave(tmp_path)
    original, renamed = Path.rename, []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename)
        put_aside(cfg)
    assert (tmp_path / "earlier.part").is_dir()
    put_back(tmp_path)
    everything = {*FILES, *OTHERS, "inference"} - {"config.yaml"}
    assert names(tmp_path) == sorted(everything)
    put_aside(cfg)
    check_aside(tmp_path / "earlier_1")


def test_what_was_written_in_the_meantime_stays(cfg, tmp_path):
    """An evaluation, which needs no lock, has run before the interrupted start was made up for."""
    for folder, text in ((tmp_path / "earlier.part", "old"), (tmp_path, "new")):
        (folder / "inference").mkdir(parents=True)
        (folder / "inference/results.json").write_text(text)
    (tmp_path / "earlier.part/metrics.json").write_text("{}")
    put_back(tmp_path)
    assert names(tmp_path) == ["earlier_1", "inference", "metrics.json"]
    assert (tmp_path / "inference/results.json").read_text() == "new"
    assert (tmp_path / "earlier_1/inference/results.json").read_text() == "old"


def test_the_weights_to_start_from_are_not_moved(cfg, tmp_path):
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "backbone.pth").touch()
    (tmp_path / "model_final.pth").touch()
    (tmp_path / "link.pth").symlink_to("model_final.pth")
    (tmp_path / "model_best.pth").symlink_to(elsewhere / "backbone.pth")
    before = names(tmp_path)
    for name in ("link.pth", "model_best.pth", "model_final.pth"):
        cfg.MODEL.WEIGHTS = str(tmp_path / name)
        with pytest.raises(ValueError, match=f"^MODEL.WEIGHTS {re.escape(cfg.MODEL.WEIGHTS)} is a"):
            put_aside(cfg)
    assert names(tmp_path) == before


@pytest.mark.parametrize("weights", ["d2://R-50.pkl", "{}/pretrained.pth"])
def test_other_weights_may_be_anywhere(cfg, tmp_path, weights):
    leave(tmp_path)
    (tmp_path / "model_best.pth").symlink_to("nowhere")
    cfg.MODEL.WEIGHTS = weights.format(tmp_path)
    put_aside(cfg)
    assert (tmp_path / "earlier_1/model_best.pth").is_symlink()


def test_a_job_knows_its_training(cfg, tmp_path):
    assert not begun_by("a", tmp_path)
    put_aside(cfg, "a")
    assert begun_by("a", tmp_path) and not begun_by("b", tmp_path)
    put_aside(cfg)
    assert not begun_by("a", tmp_path)
    (tmp_path / ".job").touch()
    assert not begun_by("", tmp_path)


@pytest.mark.parametrize(
    ("job", "flags", "resumes"),
    [
        ("", [], False),
        ("a", [], True),
        ("b", [], False),  # its first start had failed before it began
        ("b", ["--resume"], True),
        ("a", ["--eval-only"], False),
        ("b", ["--eval-only"], False),
    ],
)
def test_a_job_continues_what_it_began(cfg, tmp_path, monkeypatch, job, flags, resumes):
    put_aside(cfg, "a")
    leave(tmp_path)
    before = names(tmp_path)
    options = ["--config-file", NETWORK, "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"]
    args = train.parser().parse_args([*flags, *options])
    monkeypatch.setattr(train, "preflight", lambda *_, **__: None)
    monkeypatch.setattr(train, "default_setup", lambda *_: None)
    monkeypatch.setattr(train, "_train_or_evaluate", lambda args, cfg: args.resume)
    assert train.train_or_evaluate(args, job) is resumes
    begins = not resumes and "--eval-only" not in flags
    assert begun_by(job, tmp_path) is (job == "a" or (begins and bool(job)))
    kept = set(before) <= set(names(tmp_path))
    assert kept is not begins
    assert (tmp_path / "earlier_1").exists() is begins


def test_the_lock_comes_first(cfg, tmp_path, monkeypatch):
    leave(tmp_path)
    monkeypatch.setattr(train, "reserved", lambda *_: reserved(tmp_path / "nowhere", "training"))
    with pytest.raises(FileNotFoundError), train._own_folder(cfg, False, ""):
        pass
    assert not (tmp_path / "earlier_1").exists()


def test_an_evaluation_keeps_the_config_of_the_training(tmp_path, monkeypatch):
    def set_up(cfg, args):
        (tmp_path / "config.yaml").write_text("of the evaluation")
        if (tmp_path / ".config.yaml.kept").exists():
            raise OSError("full")

    monkeypatch.setattr(train, "preflight", lambda *_, **__: None)
    monkeypatch.setattr(train, "default_setup", set_up)
    monkeypatch.setattr(train, "_train_or_evaluate", lambda args, cfg: None)
    options = ["--config-file", NETWORK, "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"]
    train.train_or_evaluate(train.parser().parse_args(["--eval-only", *options]))
    assert (tmp_path / "config.yaml").read_text() == "of the evaluation"
    (tmp_path / "config.yaml").write_text("of the training")
    with pytest.raises(OSError, match="full"):
        train.train_or_evaluate(train.parser().parse_args(["--eval-only", *options]))
    assert (tmp_path / "config.yaml").read_text() == "of the training"
    (tmp_path / "config.yaml").rename(tmp_path / ".config.yaml.kept")  # as a kill leaves it
    with pytest.raises(OSError, match="full"):
        train.train_or_evaluate(train.parser().parse_args(["--eval-only", *options]))
    assert (tmp_path / "config.yaml").read_text() == "of the training"


def test_a_dry_run_finds_what_would_stop_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "preflight", lambda *_, **__: None)
    options = ["--config-file", NETWORK, "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"]
    weights = ["MODEL.WEIGHTS", f"{tmp_path}/model_final.pth"]
    with pytest.raises(ValueError, match="^MODEL.WEIGHTS .* is a checkpoint of the earlier"):
        train.main(train.parser().parse_args(["--dry-run", *options, *weights]))
    run = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(BlockingIOError, match="another training writes here"):
            train.main(train.parser().parse_args(["--dry-run", *options]))
        holder.stdin.close()
