"""The command line: its commands, help, and errors."""

import argparse
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2_deformable.cli import command, logs
from d2_deformable.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]


def status(function, *args):
    with pytest.raises(SystemExit) as error:
        function(*args)
    return error.value.code


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    assert status(main, [*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: d2-deformable {name}")
    assert f"  d2-deformable {name}" in shown.partition("example")[2]


def test_help_lists_every_command(capsys):
    main([])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_an_unknown_command_names_the_nearest(capsys):
    assert status(main, ["trian"]) == 2
    assert "no such command: trian; did you mean train?" in capsys.readouterr().err


def fails(args):
    raise ValueError("the file is broken")


def test_wrong_input_is_one_line_and_debug_shows_the_traceback():
    assert status(command.run, fails, argparse.ArgumentParser("c"), []) == "c: the file is broken"
    with pytest.raises(ValueError, match="the file is broken"):
        command.run(fails, argparse.ArgumentParser("c"), ["--debug"])


def interrupted(args):
    raise KeyboardInterrupt


def test_an_interruption_has_its_own_status(capsys):
    assert status(command.run, interrupted, argparse.ArgumentParser("c"), []) == 130
    assert capsys.readouterr().err == "c: interrupted\n"


class Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise OSError("a.jpg: this image cannot be read")


def loads(args):
    list(torch.utils.data.DataLoader(Unreadable(), num_workers=1))


def test_an_error_of_a_data_loaders_process_is_one_line():
    expected = "c: a.jpg: this image cannot be read"
    assert status(command.run, loads, argparse.ArgumentParser("c"), []) == expected


class Killed(Unreadable):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_lost_process_of_a_data_loader_is_one_line():
    def main(args):
        list(torch.utils.data.DataLoader(Killed(), num_workers=1))

    message = status(command.run, main, argparse.ArgumentParser("c"), [])
    assert re.fullmatch(r"c: DataLoader worker .*\. It loaded images\. .* --resume", message)


@pytest.mark.parametrize("debug", [False, True])
def test_logs_of_a_training(tmp_path, capsys, debug):
    logs.set_up_logs(str(tmp_path), 0, debug)
    logger = logging.getLogger("detectron2.engine.train_loop")
    logger.info("\x1b[38mcolourful\x1b[0m")
    for error in (ValueError("mistake"), KeyError("bug")):
        try:
            raise error
        except Exception:
            logger.exception("Exception during training:")
    shown, written = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
    for text in (shown, written):
        assert "colourful" in text and "\x1b" not in text and "KeyError: 'bug'" in text
    assert ("ValueError: mistake" in shown) == debug
    assert "ValueError: mistake" in written


def test_other_processes_log_to_files_alone(tmp_path, capsys):
    logger = logging.getLogger("d2_deformable")
    logger.addHandler(console := logging.StreamHandler(sys.stdout))  # as `command.run` does
    try:
        logs.set_up_logs(str(tmp_path), 1)
        logger.warning("said once")
    finally:
        logger.removeHandler(console)
    assert "said once" not in capsys.readouterr().out
    assert "said once" in (tmp_path / "log.txt.rank1").read_text()


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "d2_deformable", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "0.1.0\n")


VERSION = ["-m", "d2_deformable", "--version"]
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "program, given, spins",
    [
        (VERSION, {}, 1000),
        (VERSION, {"GOMP_SPINCOUNT": "5"}, 5),
        pytest.param(VERSION, {"OMP_WAIT_POLICY": "active"}, 30_000_000_000, marks=SLOW),
        pytest.param(["train_net.py", "--help"], {}, 1000, marks=SLOW),
        pytest.param(["-c", "import d2_deformable"], {}, 300_000, marks=SLOW),  # libgomp's default
    ],
)
def test_commands_spin_briefly_while_their_threads_wait(program, given, spins):
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    env |= {"OMP_DISPLAY_ENV": "verbose", **given}  # libgomp prints what it has read
    done = subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, env=env, cwd=ROOT
    )
    assert done.returncode == 0
    if not (shown := re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)):
        pytest.skip("this torch does not use libgomp")
    assert int(shown[1]) == spins
