"""Files are replaced, never written in place."""

import json
import os

import pytest

from d2_deformable.cli import command
from d2_deformable.utils.files import replace_json


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
