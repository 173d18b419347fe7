"""The files that inputs stand for."""

from pathlib import Path

import pytest

from d2_deformable.inference.sources import find_images, find_inputs, is_video


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.JPG", "a.png", "notes.txt", "sub/c.tif", "sub/clip.MP4", ".hidden/d.png"):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "in/._a.png").touch()  # as macOS writes them
    return tmp_path


def names(files):
    return [file.as_posix() for file in files]


def test_a_folder_with_its_subfolders(root):
    assert names(find_inputs("in")) == ["in/a.png", "in/b.JPG", "in/sub/c.tif", "in/sub/clip.MP4"]
    assert names(find_images("in")) == ["in/a.png", "in/b.JPG", "in/sub/c.tif"]


def test_results_of_an_earlier_run_are_no_inputs(root):
    (root / "in/found").mkdir()
    (root / "in/found/a.png").touch()
    for inputs in ("in", "in/**", "."):
        assert "in/found/a.png" not in names(find_inputs(inputs, but=Path("in/found")))
        assert "in/found/a.png" in names(find_inputs(inputs))
    assert names(find_inputs("in/found/a.png", but=Path("in/found"))) == ["in/found/a.png"]


def test_files_and_globs_in_their_order_without_duplicates(root):
    found = find_inputs(["in/sub/clip.MP4", "in/*.png", "in/a.png", "in/notes.txt"])
    assert names(found) == ["in/sub/clip.MP4", "in/a.png", "in/notes.txt"]
    assert is_video(found[0]) and not is_video(found[1])
    assert names(find_inputs("in/**/*.tif")) == ["in/sub/c.tif"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("nothing.jpg", "nothing.jpg: no such file"),
        (["in/a.png", "in/*.bmp"], r"in/\*.bmp: no such file"),
        ("empty", "empty: no image or video in this folder"),
        ([], "no input"),
    ],
)
def test_an_input_without_files_is_named(root, inputs, message):
    (root / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        find_inputs(inputs)


def test_only_videos(root):
    with pytest.raises(FileNotFoundError, match="clip.MP4: no image, only videos"):
        find_images("in/sub/clip.MP4")
