"""Paths named by data stay in their folder."""

import os

import pytest

from d2_deformable.utils.paths import inside, leads_out


@pytest.mark.parametrize(
    "name", ["a.jpg", "sub/a.jpg", "./a.jpg", "sub/../a.jpg", "..a/b", "a..jpg"]
)
def test_paths_inside(tmp_path, name, monkeypatch):
    path = inside(tmp_path, name, "x.json", "")
    assert str(path) == os.path.normpath(f"{tmp_path}/{name}")
    monkeypatch.chdir(tmp_path)
    assert str(inside("images", name, "x.json", "")) == os.path.normpath(f"images/{name}")
    absolute = f"{tmp_path}/{name}"
    assert not leads_out(tmp_path, absolute), "an absolute path may lie in the folder too"


@pytest.mark.parametrize(
    "name", ["..", "../a.jpg", "sub/../../a.jpg", "/etc/passwd", "../{}x/a.jpg", "a/../../{}/../b"]
)
@pytest.mark.parametrize("relative", [False, True])
def test_paths_that_lead_out(tmp_path, name, relative, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    folder = tmp_path.name if relative else tmp_path
    name = name.format(tmp_path.name)  # a neighbour whose name starts alike
    assert leads_out(folder, name)
    with pytest.raises(ValueError, match=r"^x.json: image 3 names '.*'; expected a path inside"):
        inside(folder, name, "x.json: image 3", "Correct it")


def test_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not leads_out("", "a.jpg") and not leads_out(".", "a.jpg")
    assert leads_out("", "../a.jpg") and leads_out(".", "../a.jpg")


def test_symbolic_links_belong_to_the_folder(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "a.jpg").touch()
    (tmp_path / "root/link.jpg").symlink_to(tmp_path / "a.jpg")
    (tmp_path / "root/folder").symlink_to(tmp_path)
    assert inside(tmp_path / "root", "link.jpg", "", "").is_file()
    # ".." is taken away before links are followed, so that it cannot leave through one.
    assert inside(tmp_path / "root", "folder/../a.jpg", "", "") == tmp_path / "root/a.jpg"
