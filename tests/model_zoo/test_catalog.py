"""The files of the model zoo are intact, found by URL, and part of the wheel."""

import shutil
from distutils.core import run_setup
from pathlib import Path

import pytest
from detectron2.utils.file_io import PathManager

from d2_deformable.model_zoo import catalog, get_checkpoint_url
from d2_deformable.utils.files import sha256

ZOO = "d2_deformable.model_zoo"
ROOT = Path(__file__).parents[2]
INDEX = catalog.read_index()
NAME = "warped_shapes_rfcn_R_18_dconv3_dpool.pth"
URL = f"d2_deformable://{NAME}"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy that replaces the zoo's folder."""
    folder = shutil.copytree(catalog.FOLDER, tmp_path / "model_zoo")
    monkeypatch.setattr(catalog, "FOLDER", folder)
    return folder


@pytest.mark.parametrize("name", INDEX)
def test_files_are_those_of_the_index(name):
    entry, file = INDEX[name], catalog.FOLDER / name
    assert sha256(file) == entry["sha256"]
    assert file.stat().st_size == entry["bytes"] < 8_000_000
    assert PathManager.get_local_path(f"d2_deformable://{name}") == str(file)
    assert (ROOT / "configs" / entry["config"]).is_file()
    assert get_checkpoint_url(entry["config"]) == f"d2_deformable://{name}"


def test_every_file_is_in_the_index():
    assert NAME in INDEX
    assert {path.name for path in catalog.FOLDER.glob("*.pth")} == set(INDEX)


def test_opens_for_reading_only(copy):
    with PathManager.open(URL, "rb") as file:
        assert file.read() == (copy / NAME).read_bytes()
    with pytest.raises(ValueError, match="can be read only; mode is 'wb'"):
        PathManager.open(URL, "wb")


def test_a_flipped_bit_is_refused(copy):
    assert PathManager.get_local_path(URL) == str(copy / NAME)
    content = bytearray((copy / NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / NAME).write_bytes(content)
    with pytest.raises(OSError, match=f"sha256 should be {INDEX[NAME]['sha256']}.*git checkout"):
        PathManager.get_local_path(URL)


def test_a_missing_file_is_refused(copy):
    (copy / NAME).unlink()
    with pytest.raises(OSError, match="but it is no file"):
        PathManager.get_local_path(URL)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(FileNotFoundError, match=f"://R_18.pth: no such checkpoint; .*{NAME}"):
        PathManager.get_local_path("d2_deformable://R_18.pth")
    with pytest.raises(ValueError, match=f"no checkpoint of 'quick/a.yaml'; .*{Path(NAME).stem}"):
        get_checkpoint_url("quick/a.yaml")


def test_a_wheel_holds_them(monkeypatch):
    monkeypatch.chdir(ROOT)
    build = run_setup("setup.py", stop_after="config").get_command_obj("build_py")
    build.ensure_finalized()
    packed = {name for package, *_, names in build.data_files if package == ZOO for name in names}
    assert packed == {"index.json", *INDEX}
