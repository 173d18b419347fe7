"""The command line: its commands, help, and errors."""

import argparse
import subprocess
import sys

import pytest

from d2_deformable.cli import command
from d2_deformable.cli.main import COMMANDS, main


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


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "d2_deformable", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "0.1.0\n")
