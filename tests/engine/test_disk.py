"""A folder that cannot be written to, and a full disk, are one sentence."""

import errno
import os
from pathlib import Path

import pytest

from d2_deformable.cli import train
from d2_deformable.engine import Trainer
from d2_deformable.engine.checkpoint_files import named_checkpoint
from d2_deformable.utils.files import make_folder, naming_full_disk
from yamls import CONFIGS

NETWORK = str(CONFIGS / "quick/warped_shapes_rfcn_R_18_dconv3_dpool.yaml")


def test_folders_are_made_or_refused(tmp_path):
    make_folder(tmp_path / "a/b", "OUTPUT_DIR")
    assert (tmp_path / "a/b").is_dir()
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "x"):
        message = f"^OUTPUT_DIR {folder} cannot be written to: it, or a part of it, is a file"
        with pytest.raises(OSError, match=message):
            make_folder(folder, "OUTPUT_DIR")
    for folder in ("/proc/nowhere", "a" * 5000, "a\0b"):
        with pytest.raises(
            OSError, match="^OUTPUT_DIR .* cannot be written to: .*Give another one"
        ):
            make_folder(folder, "OUTPUT_DIR")


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(OSError, match="it is read-only"):
        make_folder(tmp_path, "OUTPUT_DIR")


def test_the_command_checks_output_dir_first(tmp_path):
    (tmp_path / "file").touch()
    args = train.parser().parse_args(["--config-file", NETWORK, "OUTPUT_DIR", f"{tmp_path}/file"])
    with pytest.raises(OSError, match="OUTPUT_DIR .*file cannot be written to"):
        train.main(args)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_names_the_folder():
    message = "^output: No space left on device. What was saved before"
    with pytest.raises(OSError, match=message), naming_full_disk("output"):
        Path("/dev/full").write_text("x")
    with pytest.raises(FileNotFoundError), naming_full_disk("output"):
        Path("nowhere/x").read_text()


def test_a_full_disk_in_a_training(tmp_path, monkeypatch):
    def train_until_full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Trainer, "train", train_until_full)
    options = ["OUTPUT_DIR", str(tmp_path), "MODEL.RESNETS.WIDTH_PER_GROUP", "8"]
    options += ["DATASETS.CUSTOM.warped_shapes_train.ROOT", str(tmp_path / "data")]
    options += ["DATASETS.CUSTOM.warped_shapes_val.ROOT", str(tmp_path / "data")]
    options += ["DATASETS.CUSTOM.warped_shapes_train.NUM_IMAGES", "4"]
    options += ["DATASETS.CUSTOM.warped_shapes_val.NUM_IMAGES", "4"]
    args = train.parser().parse_args(["--config-file", NETWORK, "MODEL.DEVICE", "cpu", *options])
    with pytest.raises(OSError, match=f"^{tmp_path}: No space left on device. .* --resume"):
        train.main(args)


def test_a_huge_last_checkpoint_is_read_in_part(tmp_path):
    with open(tmp_path / "last_checkpoint", "wb") as file:
        file.truncate(2**40)
    assert named_checkpoint(tmp_path) == ""
