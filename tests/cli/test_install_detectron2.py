"""The parts of d2-deformable install-detectron2 that do not need a network."""

import importlib.util
import os
import subprocess
import sys
import tarfile
from argparse import Namespace
from pathlib import Path

import pytest

from d2_deformable.cli import install_detectron2 as installer
from d2_deformable.cli.main import main

ROOT = Path(__file__).parents[2]
NAME = ["install-detectron2"]


@pytest.fixture
def placeholder(tmp_path, monkeypatch):
    """A package whose _C is the placeholder, importable under the name fake_d2."""
    package = tmp_path / "fake_d2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_C.py").write_text(installer.C_PLACEHOLDER)
    monkeypatch.syspath_prepend(tmp_path)
    yield "fake_d2"
    for name in [m for m in sys.modules if m.split(".")[0] == "fake_d2"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x.astype(np.bool)", "x.astype(bool)"),
        ("np.full(3, np.nan, dtype=np.float)", "np.full(3, np.nan, dtype=float)"),
        ("[np.int, numpy.str, np.object]", "[int, str, object]"),
        ("interp=Image.LINEAR, fill=0", "interp=Image.BILINEAR, fill=0"),
    ],
)
def test_removed_aliases_are_replaced(old, new):
    assert installer.patch_aliases(old) == new


@pytest.mark.parametrize(
    "text",
    [
        "np.int64 + np.int32 + np.intp + np.uint8",
        "np.float32 + np.float64 + np.floating",
        "np.bool_ | np.object_ | np.str_",
        "np.strings.upper(a)",
        "Image.BILINEAR, Image.LINEARITY, torch.np.int, mynp.int, self.np.bool, MyImage.LINEAR",
    ],
)
def test_other_names_are_left_alone(text):
    assert installer.patch_aliases(text) == text


def test_setup_patches_must_all_apply():
    original = "\n".join(installer.SETUP_PATCHES)
    assert installer.patch_setup(original) == "\n".join(installer.SETUP_PATCHES.values())
    with pytest.raises(installer.InstallError, match="not hold this text exactly once: ext"):
        installer.patch_setup(original.replace("ext_modules=get_extensions()", ""))


def test_placeholder_raises_a_clear_error_on_use(placeholder):
    _C = importlib.import_module(placeholder + "._C")
    with pytest.raises(ImportError, match=r"_C\.box_iou_rotated is one of Detectron2's compiled"):
        _C.box_iou_rotated(1, 2)
    with pytest.raises(ImportError, match="use_fast_impl=False"):
        exec(f"from {placeholder}._C import COCOevalAccumulate")


def test_placeholder_imports_like_any_module(placeholder):
    scope = {}
    exec(f"from {placeholder} import _C", scope)
    exec(f"import {placeholder}._C as same", scope)
    assert scope["_C"] is scope["same"]
    assert Path(scope["_C"].__file__).name == "_C.py"
    assert not hasattr(scope["_C"], "__path__")
    # Detectron2 prints these versions at the start of training.
    assert "no C++" in scope["_C"].get_compiler_version() + scope["_C"].get_cuda_version()
    assert scope["_C"].has_cuda() is False


def test_wrong_archive_is_named(tmp_path):
    with pytest.raises(installer.InstallError, match="nowhere.tar.gz is not a file"):
        installer.check_archive(tmp_path / "nowhere.tar.gz")
    (tmp_path / "other.tar.gz").write_bytes(b"something else")
    with pytest.raises(
        installer.InstallError,
        match=r"other\.tar\.gz has sha256 .*, detectron2-cdo==0.5 has 53",
    ):
        installer.check_archive(tmp_path / "other.tar.gz")


def test_tree_is_patched_where_it_lies(tmp_path):
    tree = tmp_path / "detectron2_cdo-0.5"
    for folder in ("detectron2/structures", "projects/PointRend/point_rend"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "masks.py").write_text("m.astype(np.bool)  # ä\n", encoding="utf-8")
    (tree / "setup.py").write_text("\n".join(installer.SETUP_PATCHES))
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, arcname=tree.name)

    root = installer.unpack(archive, tmp_path / "unpacked")
    installer.patch_tree(root)
    for path in root.glob("*/**/masks.py"):
        assert path.read_text(encoding="utf-8") == "m.astype(bool)  # ä\n"
    assert "ext_modules=[]" in (root / "setup.py").read_text()
    assert (root / "detectron2" / "_C.py").read_text() == installer.C_PLACEHOLDER


def test_source_is_checked(tmp_path):
    nothing = Namespace(archive=None, wheel_only=None)
    assert [installer.choose_source(s, nothing) for s in ("auto", "git", "pypi")] == [
        "auto",
        "git",
        "pypi",
    ]
    with pytest.raises(
        installer.InstallError, match="D2_SOURCE=conda is unknown: use auto, git or pypi"
    ):
        installer.choose_source("conda", nothing)
    with_archive = Namespace(archive=tmp_path, wheel_only=None)
    assert installer.choose_source("auto", with_archive) == "pypi"
    with pytest.raises(installer.InstallError, match="not for git"):
        installer.choose_source("git", with_archive)


def test_missing_torch_is_one_sentence(monkeypatch):
    find_spec = importlib.util.find_spec
    hidden = ("torch", "detectron2")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in hidden else find_spec(name)
    )
    monkeypatch.setenv("D2_SOURCE", "pypi")
    with pytest.raises(SystemExit, match="^d2-deformable install-detectron2: .* needs torch to be"):
        main(NAME)


def test_installed_detectron2_is_left_alone(monkeypatch, capsys):
    pytest.importorskip("detectron2")
    monkeypatch.setenv("D2_SOURCE", "pypi")
    monkeypatch.setattr(installer, "run_pip", lambda *args: pytest.fail(f"pip was run: {args}"))
    main(NAME)
    assert "kept: Detectron2 " in capsys.readouterr().out


@pytest.mark.parametrize("source", ["git", "auto"])
def test_unreachable_github(source, monkeypatch, capsys):
    used = []
    monkeypatch.setenv("D2_SOURCE", source)
    monkeypatch.setattr(installer, "installed_source", lambda: "0.5" if used else None)
    monkeypatch.setattr(installer, "git_obstacle", lambda: "no answer within 10 s")
    monkeypatch.setattr(installer, "install_from_pypi", used.append)
    if source == "git":
        with pytest.raises(
            SystemExit, match="D2_SOURCE=git cannot work here: no answer within 10 s"
        ):
            main(NAME)
        assert not used
    else:
        main(NAME)
        assert used
        obstacle = "from PyPI, since GitHub cannot be used (no answer within 10 s)"
        assert obstacle in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (None, "git is not installed"),
        ("exit 1", "cannot be reached"),
        ("exec sleep 60", "no answer within 0.2 s"),
        ("exit 0", None),
    ],
)
def test_probe_of_github(program, words, tmp_path, monkeypatch):
    if program:
        (tmp_path / "git").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "git").chmod(0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(installer.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(installer, "GIT_PROBE_SECONDS", 0.2)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}" if program else str(tmp_path))
    obstacle = installer.git_obstacle()
    assert (obstacle is None) if words is None else (words in obstacle)


def test_probe_needs_the_headers_of_python(tmp_path, monkeypatch):
    monkeypatch.setattr(installer.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "apt install python3-dev" in installer.git_obstacle()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["-m", "d2_deformable", *NAME],
            "d2-deformable install-detectron2: Detectron2 needs torch",
        ),
        (["tools/install_detectron2.py"], "install_detectron2: Detectron2 needs"),
        (["-m", "d2_deformable", "train"], "d2-deformable train: d2_deformable needs Detectron2, "),
    ],
)
def test_without_any_other_package(command, message):
    done = subprocess.run(
        [sys.executable, "-S", *command],  # -S leaves out the installed packages
        cwd=ROOT,
        env={**os.environ, "D2_SOURCE": "pypi", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(message)


def test_a_missing_detectron2_is_a_traceback_with_debug():
    command = [sys.executable, "-S", "-m", "d2_deformable", "train", "--debug"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].endswith("run `d2-deformable install-detectron2`")
