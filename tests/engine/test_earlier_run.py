"""A new training keeps what an earlier one left in its folder; a restart continues only its own."""

import re

import pytest
from detectron2.config import get_cfg

from d2_deformable.cli import train
from d2_deformable.engine.earlier_run import begun_by_this_job, put_aside
from yamls import CONFIGS

NETWORK = str(CONFIGS / "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml")

FILES = ["model_0000001.pth", "model_0000001.pth.sha256", "model_final.pth", "model_ema.pth"]
FILES += ["last_checkpoint", "metrics.json", "events.out.tfevents.1.host", "config.yaml"]


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", str(tmp_path)
    return cfg


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_files_of_each_training_stay_together(cfg, tmp_path):
    (tmp_path / "log.txt").touch()
    for number in (1, 2):
        for name in FILES:
            (tmp_path / name).write_text(str(number))
        put_aside(cfg)
    assert names(tmp_path) == [".job", "earlier_1", "earlier_2", "log.txt"]
    for number in (1, 2):
        aside = tmp_path / f"earlier_{number}"
        assert names(aside) == sorted(FILES)
        assert (aside / "metrics.json").read_text() == str(number)


@pytest.mark.parametrize("name", ["log.txt", "config.yaml", "inference"])
def test_a_folder_without_a_training_stays_as_it_is(cfg, tmp_path, name):
    (tmp_path / name).touch()
    put_aside(cfg)
    assert names(tmp_path) == [".job", name]


def test_the_weights_to_start_from_are_not_moved(cfg, tmp_path):
    (tmp_path / "model_final.pth").touch()
    (tmp_path / "link.pth").symlink_to("model_final.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "link.pth")
    with pytest.raises(ValueError, match=f"^MODEL.WEIGHTS {re.escape(cfg.MODEL.WEIGHTS)} is a"):
        put_aside(cfg)
    assert names(tmp_path) == ["link.pth", "model_final.pth"]


def test_other_weights_may_be_anywhere(cfg, tmp_path):
    (tmp_path / "metrics.json").touch()
    cfg.MODEL.WEIGHTS = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    put_aside(cfg)
    assert (tmp_path / "earlier_1/metrics.json").is_file()


def test_a_job_knows_its_training(cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    assert not begun_by_this_job(tmp_path)
    put_aside(cfg)
    assert begun_by_this_job(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "b")
    assert not begun_by_this_job(tmp_path)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert not begun_by_this_job(tmp_path)


@pytest.mark.parametrize(
    ("job", "count", "flags", "resumes"),
    [
        ("a", "0", [], False),
        ("a", "1", [], True),
        ("b", "1", [], False),  # which had failed before it began
        ("a", "1", ["--eval-only"], False),
        ("b", "0", ["--resume"], True),
    ],
)
def test_a_restart_continues_what_its_job_began(
    cfg, tmp_path, monkeypatch, job, count, flags, resumes
):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    put_aside(cfg)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    options = ["--config-file", NETWORK, "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu"]
    args = train.parser().parse_args([*flags, *options])
    monkeypatch.setattr(train, "preflight", lambda cfg, eval_only, resume: seen.append(resume))
    seen = []
    train.checked_config(args)
    assert seen == [resumes] and args.resume is resumes
