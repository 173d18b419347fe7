"""d2-deformable doctor: what it finds here, and in installations where something is missing."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import d2_deformable
from d2_deformable.cli.main import main
from d2_deformable.ops import self_test

PACKAGE = Path(d2_deformable.__file__).parent
# Packages of these names raise an error when they are imported.
START = """
import sys

class Broken:
    errors = {}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if error := cls.errors.get(name.partition(".")[0]):
            raise error

sys.meta_path.insert(0, Broken)
sys.argv[0] = "d2-deformable"
from d2_deformable.cli.main import main
"""


def doctor(start=START, folder=PACKAGE.parent):
    """Run it in a process of its own; return its exit status, and its JSON."""
    done = subprocess.run(
        [sys.executable, "-c", f"{start}main(['doctor', '--json'])"],
        **{"cwd": folder, "capture_output": True, "text": True},
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def broken(found):
    return [finding for finding in found["findings"] if finding["broken"]]


def test_this_installation(capsys):
    main(["doctor"])
    text = capsys.readouterr().out
    assert text.endswith("all works\n") and "BROKEN" not in text
    assert max(map(len, text.splitlines()[1:])) <= 100  # the first line names the folder
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert not broken(found)
    assert all(result["passed"] for result in found["self_test"])
    assert {result["device"] for result in found["self_test"]} >= {"cpu"}


@pytest.mark.parametrize("json", [[], ["--json"]], ids=["text", "json"])
def test_a_wrong_result_is_an_exit_status(json, monkeypatch, capsys):
    cases = self_test.cases()
    wrong = replace(cases[0], operator=cases[1].formula, constants={})
    monkeypatch.setattr(self_test, "cases", lambda: [wrong, *cases[1:]])
    with pytest.raises(SystemExit) as status:
        main(["doctor", *json])
    assert status.value.code == 1
    text = capsys.readouterr().out
    assert "the self-test on cpu failed: deform_roi_pool float64, deform_roi_pool float32," in text


def error(name, raised):
    return START.replace("errors = {}", f"errors = {{{name!r}: {raised}}}")


def missing(name):
    return error(name, f"ModuleNotFoundError(\"No module named '{name}'\", name={name!r})")


def test_without_detectron2():
    status, found = doctor(missing("detectron2"))
    (finding,) = broken(found)
    assert status == 1 and "Detectron2, which is not installed" in finding["problem"]
    assert "d2-deformable install-detectron2" in finding["remedy"]
    assert all(result["passed"] for result in found["self_test"])


def test_without_torch():
    status, found = doctor(missing("torch"))
    assert status == 1 and found["self_test"] == []
    assert broken(found)[0] == {
        "broken": True,
        "problem": "torch is not installed",
        "remedy": "pip install torch",
    }


def test_a_torchvision_of_another_torch():
    status, found = doctor(error("torchvision", "RuntimeError('torchvision::nms does not exist')"))
    (problem,) = [finding["problem"] for finding in broken(found)]
    assert status == 1
    assert problem == "torchvision does not import (RuntimeError: torchvision::nms does not exist)"
    assert all(result["passed"] for result in found["self_test"])  # the operators do not need it


@pytest.mark.parametrize(
    ("library", "problem"),
    [
        (None, "the operators are not built: .*_C.so is missing"),
        (b"d2_deformable built with torch 1.2.3", "were built with torch 1.2.3, this is 2"),
        (b"not a library", "the operators do not load: .*_C.so"),
    ],
)
def test_a_library_that_does_not_load(library, problem, tmp_path):
    """Other commands print one line."""
    unused = shutil.ignore_patterns("_C.so", "*.pth", "__pycache__")
    package = shutil.copytree(PACKAGE, tmp_path / "d2_deformable", ignore=unused)
    if library:
        (package / "_C.so").write_bytes(library)
    status, found = doctor(folder=tmp_path)
    (finding,) = broken(found)
    assert status == 1 and finding["remedy"].startswith("run `pip install")
    assert re.search(problem, finding["problem"])
    assert found["package"]["folder"] == str(package)
    done = subprocess.run(
        [sys.executable, "-m", "d2_deformable", "train"],
        **{"cwd": tmp_path, "capture_output": True, "text": True},
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert (
        done.stderr.startswith("d2-deformable train: ") and "`d2-deformable doctor`" in done.stderr
    )
