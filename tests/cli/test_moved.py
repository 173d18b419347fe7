"""The old paths of commands in tools/."""

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
FOR_DEVELOPERS = {"build_cuda", "chaos", "install_detectron2", "record_app", "run_notebook"}
FOR_DEVELOPERS |= {"sanitize"}
MOVED = {
    "complexity": "analyze complexity",
    "convert_checkpoint": "convert",
    "dump_proposals": "proposals",
    "effective_dilation": "analyze dilation",
    "export": "export",
    "export_checkpoint": "export weights",
    "prepare_voc_aug": "data prepare-voc-aug",
    "publish_checkpoint": "publish",
    "train_imagenet": "train imagenet",
    "visualize_sampling": "analyze sampling",
    "write_report": "report",
}


def test_tools_has_nothing_else():
    assert {path.stem for path in TOOLS.glob("*.py")} == MOVED.keys() | FOR_DEVELOPERS


@pytest.mark.parametrize("script", MOVED)
def test_an_old_path_prints_and_runs_the_new_command(script, monkeypatch, capsys):
    file = TOOLS / f"{script}.py"
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(file), run_name="__main__")
    assert error.value.code == 0
    shown = capsys.readouterr()
    assert shown.err == f"tools/{script}.py is now: d2-deformable {MOVED[script]} --help\n"
    assert shown.out.startswith(f"usage: d2-deformable {MOVED[script]} [-h]")
