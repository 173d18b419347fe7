"""Files are replaced, never written in place."""

import json
import os
import signal
import subprocess
import sys

import pytest

from d2_deformable.cli import command
from d2_deformable.utils.files import replace_json, reserved


def test_json_replaces_the_old_file(tmp_path):
    file, reader = tmp_path / "new" / "a.json", tmp_path / "reader"
    replace_json(file, {"a": 1})
    os.link(file, reader)  # stays with the old content, as an open file does
    replace_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 2}
    assert json.loads(reader.read_text()) == {"a": 1}
    with pytest.raises(TypeError):
        replace_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 2} and os.listdir(file.parent) == ["a.json"]


def test_results_of_commands_replace_the_old_file(tmp_path, capsys):
    file, reader = tmp_path / "new" / "a.json", tmp_path / "reader"
    command.write_json(file, {"a": 1})
    os.link(file, reader)
    command.write_json(file, {"a": 2})
    assert [json.loads(f.read_text())["a"] for f in (file, reader)] == [2, 1]
    assert json.loads(file.read_text()).keys() >= {"command", "machine", "versions", "commit"}
    assert str(file) in capsys.readouterr().out


def test_a_folder_is_reserved_by_one_process(tmp_path):
    """Also while it has children, which must not keep it when it has ended."""
    code = "import sys; from d2_deformable.utils.files import reserved\n"
    code += "with reserved(sys.argv[1], 'training'): pass"
    other = [sys.executable, "-c", code, str(tmp_path)]
    with reserved(tmp_path, "training"):
        done = subprocess.run(other, capture_output=True, text=True)
        assert done.returncode and (
            f"{tmp_path}: another training writes here (process {os.getpid()} on" in done.stderr
        )
        child = os.fork()
        if not child:
            signal.pause()
    try:
        assert subprocess.run(other).returncode == 0
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
